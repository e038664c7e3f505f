"""Files as the published code writes them: names of timm 0.6.12, legs run by hand from the original networks."""

from __future__ import annotations

import argparse
import pickle
import sys
from collections import OrderedDict
from functools import partial
from types import ModuleType

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.levit import Levit, LevitDistilled
from torch import nn
from torch.nn import functional as F

import snnet
from snnet import NoWeights, SnnetError, StitchableNet, load_official
from snnet.net.official import _guess, _split
from tests.helpers.families import images, levit, resnet, shake, swin, vit


def vit_names(model):
    return dict(model.state_dict())


def resnet_names(model):
    state = dict(model.state_dict())
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for name in norms:  # split-BN training leaves an auxiliary norm in each
        state |= {
            f'{name}.aux_bn.0.{leaf}': value + 1 for leaf, value in model.get_submodule(name).state_dict().items()
        }
    return state


def swin_names(model):
    state = {}
    for name, value in model.state_dict().items():
        for stage in range(1, len(model.layers)):
            if name.startswith(f'layers.{stage}.downsample.'):
                name = name.replace(f'layers.{stage}.', f'layers.{stage - 1}.')
                break
        state[name.replace('head.fc.', 'head.')] = value
    for i, layer in enumerate(model.layers):
        for j, block in enumerate(layer.blocks):
            state[f'layers.{i}.blocks.{j}.attn.relative_position_index'] = block.attn.relative_position_index
            if block.attn_mask is not None:
                state[f'layers.{i}.blocks.{j}.attn_mask'] = block.attn_mask
    return state


def levit_names(model):
    state, number = {}, 0

    def put(prefix, module, **renamed):
        for name, value in module.state_dict().items():
            for new, old in renamed.items():
                name = name.replace(f'{new.replace("_", ".")}.', f'{old}.', 1)
            state[f'{prefix}.{name.replace("linear.", "c.")}'] = value

    for i in range(4):
        put(f'patch_embed.{2 * i}', getattr(model.stem, f'conv{i + 1}'))
    for stage in model.stages:
        parts = []
        if not isinstance(stage.downsample, nn.Identity):
            parts += [(stage.downsample.attn_downsample, ''), (stage.downsample.mlp, '.m')]
        parts += [(part, '.m') for block in stage.blocks for part in (block.attn, block.mlp)]
        for part, residual in parts:
            put(f'blocks.{number}{residual}', part, proj_ln='proj.1', q_ln='q.1', ln1='0', ln2='2')
            if hasattr(part, 'attention_bias_idxs'):
                state[f'blocks.{number}{residual}.attention_bias_idxs'] = part.attention_bias_idxs
            number += 1
    for head in ('head', 'head_dist'):
        if hasattr(model, head):
            for name, value in getattr(model, head).state_dict().items():
                state[f'{head}.{name.replace("linear.", "l.")}'] = value
    return state


# The parts of each family, run by hand: front(model, x, stage, j) runs blocks 0..j, end(model, x, stage, k) the rest.


def vit_front(model, x, stage, j):
    x = model.patch_embed(x)
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
    return model.blocks[: j + 1](x)


def vit_end(model, x, stage, k):
    return model.head(model.blocks[k:](x)[:, 0])  # published without the final norm


def swin_front(model, x, stage, j):
    x = model.layers[:stage](model.patch_embed(x))
    return model.layers[stage].blocks[: j + 1](model.layers[stage].downsample(x))


def swin_end(model, x, stage, k):
    x = model.layers[stage + 1 :](model.layers[stage].blocks[k:](x))
    return model.head.fc(model.norm(x).mean((1, 2)))


def levit_front(model, x, stage, j):
    x = model.stages[:stage](model.stem(x).flatten(2).transpose(1, 2))
    return model.stages[stage].blocks[: j + 1](model.stages[stage].downsample(x))


def levit_end(model, x, stage, k):
    x = model.stages[stage + 1 :](model.stages[stage].blocks[k:](x)).mean(1)
    return (model.head(x) + model.head_dist(x)) / 2 if hasattr(model, 'head_dist') else model.head(x)


def resnet_layers(model):
    return [model.layer1, model.layer2, model.layer3, model.layer4]


def resnet_front(model, x, stage, j):
    x = model.maxpool(F.relu(model.bn1(model.conv1(x))))
    for layer in resnet_layers(model)[:stage]:
        x = layer(x)
    return resnet_layers(model)[stage][: j + 1](x)


def resnet_end(model, x, stage, k):
    x = resnet_layers(model)[stage][k:](x)
    for layer in resnet_layers(model)[stage + 1 :]:
        x = layer(x)
    return model.fc(x.mean((2, 3)))


def every_pair_of_a_window(depth, window=2):
    seen, joins = set(), []
    for layer in range(depth - window + 1):
        for j in range(layer, layer + window):
            for k in range(layer, layer + window):
                if (j, k) not in seen:
                    joins.append((j, k, layer))
                seen.add((j, k))
    return joins


def next_ones(depth):
    return [(j, j + 1, j) for j in range(depth - 1)]


# (stage, pair, j, k, number of the stitch layer) of every stitch behind the anchors, in the published order
VITS = [(0, pair, *join) for pair in (0, 1) for join in every_pair_of_a_window(3)]
SWINS = [(s, 0, *join) for s in (0, 1) for join in next_ones(2)]
SWINS += [(2, 0, j, k, layer) for j, k, layer in ((0, 1, 0), (1, 2, 0), (2, 3, 1), (2, 4, 2), (3, 5, 2))]
RESNETS = [(1, 0, j, k, layer) for j, k, layer in ((0, 1, 0), (1, 2, 0))]
RESNETS += [(2, 0, j, k, layer) for j, k, layer in ((0, 1, 0), (1, 2, 0), (1, 3, 1))]
LEVITS = [(0, 0, 0, 1, 0), (1, 0, 0, 1, 0), (1, 0, 1, 2, 1)]
MIXED = [(1, 0, 0, 1, 0), (2, 0, 0, 1, 0), (2, 0, 1, 2, 0), (2, 0, 1, 3, 1)]

VIT, SWIN = (vit_names, vit_front, vit_end), (swin_names, swin_front, swin_end)
RESNET, LEVIT = (resnet_names, resnet_front, resnet_end), (levit_names, levit_front, levit_end)
# image side; makers and kinds of the anchors; stitches; stages before the first in the names; layers that serve none
CASES = {
    'deit': (32, [(partial(vit, width, 3), VIT) for width in (16, 24, 32)], VITS, None, []),
    'swin': (64, [(partial(swin, 8), SWIN), (partial(swin, 16, 6), SWIN)], SWINS, 0, [(2, 0, 3)]),
    'resnet': (
        64,
        [(partial(resnet, 'resnet18', (2, 2, 2, 2)), RESNET), (partial(resnet, 'resnet50', (2, 3, 4, 2)), RESNET)],
        RESNETS,
        1,
        [(1, 0, 1)],
    ),
    'levit': (
        64,
        [(partial(levit, LevitDistilled, 16), LEVIT), (partial(levit, Levit, 24), LEVIT)],
        LEVITS,
        0,
        [],
    ),
    'resnet and swin': (
        64,
        [(partial(resnet, 'resnet18', (2, 2, 2, 2)), RESNET), (partial(swin, 24), SWIN)],
        MIXED,
        1,
        [],
    ),
}


class Published:
    """A file of a family with random weights, and what its stitches compute."""

    def __init__(self, name):
        self.size, anchors, self.joins, self.first, unused = CASES[name]
        self.kinds = [kind for _, kind in anchors]
        self.models = [shake(make(), 10 + i).eval() for i, (make, _) in enumerate(anchors)]
        self.blank = [make() for make, _ in anchors]
        generator = torch.Generator().manual_seed(5)
        self.layers = {}
        for stage, pair, _, _, layer in self.joins:
            if (stage, pair, layer) not in self.layers:
                widths = self.channels(pair + 1, stage), self.channels(pair, stage)
                self.layers[stage, pair, layer] = (
                    torch.randn(*widths, generator=generator) / 5,
                    torch.randn(widths[0], generator=generator) / 5,
                )
        for stage, pair, layer in unused:
            self.layers[stage, pair, layer] = self.layers[stage, pair, 0]

    def channels(self, anchor, stage):
        with torch.no_grad():
            model, (names, front, _) = self.models[anchor], self.kinds[anchor]
            shape = front(model, images(self.size, 1), stage, 0).shape
        return shape[1] if names is resnet_names else shape[-1]

    def state(self):
        state = {}
        for i, (model, kind) in enumerate(zip(self.models, self.kinds, strict=True)):
            state |= {f'anchors.{i}.{name}': value for name, value in kind[0](model).items()}
        for (stage, pair, layer), (weight, bias) in self.layers.items():
            place = f'{pair}.{layer}' if self.first is None else f'{stage - self.first}.{pair}.{layer}'
            if self.kinds[pair][0] is resnet_names:
                weight = weight[:, :, None, None]
            state |= {
                f'stitch_layers.{place}.transform.weight': weight,
                f'stitch_layers.{place}.transform.bias': bias,
            }
        return state

    def anchors(self):
        size = (3, self.size, self.size)
        return [snnet.as_anchor(model, f'a{i}', input_size=size) for i, model in enumerate(self.blank)]

    def logits(self, x):
        """Of every stitch, by hand."""
        found = [model(x) for model in self.models]
        for stage, pair, j, k, layer in self.joins:
            (names, front, _), (end_names, _, end) = self.kinds[pair], self.kinds[pair + 1]
            h = front(self.models[pair], x, stage, j)
            if names is resnet_names:
                h = h.permute(0, 2, 3, 1)
            weight, bias = self.layers[stage, pair, layer]
            h = h @ weight.T + bias
            if end_names is resnet_names:
                h = h.permute(0, 3, 1, 2)
            found.append(end(self.models[pair + 1], h, stage, k))
        return found


def with_settings(state):
    """As DeiT's training script saves it."""
    model = OrderedDict(state)
    model._metadata = OrderedDict([('', {'version': 1})])
    moments = {0: {'step': torch.tensor(3.0), 'exp_avg': torch.zeros(2)}}
    return {
        'model': model,
        'optimizer': {'state': moments, 'param_groups': [{'lr': 1e-4, 'betas': (0.9, 0.999), 'params': [0]}]},
        'lr_scheduler': {'base_values': [1e-4], 'cycle_mul': 1.0, 'noise_range_t': None},
        'scaler': {'scale': 65536.0},
        'epoch': 49,
        'args': argparse.Namespace(lr=1e-4, output_dir='out', gpu=0),
    }


@pytest.mark.parametrize('name', CASES)
def test_every_stitch_of_a_published_file_computes_what_its_legs_do_by_hand(tmp_path, name):
    published = Published(name)
    torch.save(with_settings(published.state()), tmp_path / 'checkpoint.pth')
    net = load_official(tmp_path / 'checkpoint.pth', published.anchors())
    x = images(published.size)
    with torch.no_grad():
        expected = published.logits(x)
        assert len(net.stitches) == len(expected)
        assert not net.training
        for stitch, logits in enumerate(expected):
            assert torch.allclose(net(x, stitch=stitch), logits, atol=1e-4, rtol=1e-4), net.stitches[stitch]
    assert len({tuple(logits.flatten().tolist()) for logits in expected}) == len(expected)


@pytest.fixture(scope='module')
def deit():
    return Published('deit')


def test_an_official_net_stays_official_when_saved(tmp_path, deit):
    torch.save(deit.state(), tmp_path / 'x.pth')
    net = load_official(tmp_path / 'x.pth', deit.anchors())
    net.save_pretrained(tmp_path / 'net')
    loaded = StitchableNet.from_pretrained(tmp_path / 'net')
    assert all(loaded.anchor(i).official for i in range(3))
    assert loaded.records == net.records
    with torch.no_grad():
        assert all(torch.equal(loaded(images(32), stitch=i), net(images(32), stitch=i)) for i in range(17))


def yacs(monkeypatch):
    """The settings class that Swin's training script saves, of a package that need not be installed."""
    module = ModuleType('yacs.config')
    module.CfgNode = type('CfgNode', (dict,), {'__module__': 'yacs.config'})
    monkeypatch.setitem(sys.modules, 'yacs', ModuleType('yacs'))
    monkeypatch.setitem(sys.modules, 'yacs.config', module)
    settings = module.CfgNode(DATA=module.CfgNode(BATCH_SIZE=128))
    settings.__dict__['__immutable__'] = True
    return settings


@pytest.mark.parametrize('wrap', ['bare', 'module', 'state_dict', 'yacs', 'legacy', 'safetensors', 'half'])
def test_the_weights_are_found_however_they_are_wrapped(tmp_path, monkeypatch, deit, wrap):
    state, path = deit.state(), tmp_path / 'x.pth'
    if wrap == 'safetensors':
        path = tmp_path / 'x.safetensors'
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        found = {
            'module': {f'module.{name}': value for name, value in state.items()},
            'state_dict': {'arch': 'x', 'state_dict': state, 'state_dict_ema': None},
            'yacs': {'model': state, 'config': yacs(monkeypatch)},
            'half': {name: value.half() for name, value in state.items()},
        }.get(wrap, state)
        torch.save(found, path, _use_new_zipfile_serialization=wrap != 'legacy')
        monkeypatch.undo()
    net = load_official(path, deit.anchors())
    weight = net.state_dict()['anchors.2.model.blocks.1.attn.qkv.weight']
    assert torch.allclose(weight, deit.models[2].blocks[1].attn.qkv.weight, atol=1e-2 if wrap == 'half' else 0)
    assert weight.dtype == torch.float32


class Evil:
    def __init__(self, call, *args):
        self.call = call, args

    def __reduce__(self):
        return self.call


def test_nothing_in_a_file_is_run(tmp_path, deit):
    for number, call in enumerate((exec, eval, __import__('os').system)):
        text = f'open({str(tmp_path / "ran")!r}, "w")' if number < 2 else f'touch {tmp_path / "ran"}'
        torch.save({**with_settings(deit.state()), 'extra': Evil(call, text)}, tmp_path / 'evil.pth')
        with pytest.raises(NoWeights, match=r'evil\.pth is not loaded: it wants to run \w+') as caught:
            load_official(tmp_path / 'evil.pth', deit.anchors())
        assert '\n' not in str(caught.value)
        (tmp_path / 'evil.pth').write_bytes(pickle.dumps(Evil(call, text)))
        with pytest.raises(NoWeights):
            load_official(tmp_path / 'evil.pth')
    assert not (tmp_path / 'ran').exists()


def without(state, name):
    del state[name]
    return state


WEIGHT = 'stitch_layers.0.0.transform.weight'


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (
            lambda s: without(s, 'anchors.1.norm.weight'),
            r'1 tensors are missing, such as anchors\.1\.model\.norm\.weight',
        ),
        (lambda s: {**s, 'anchors.1.alien': s[WEIGHT]}, r'1 tensors are of no use, such as anchors\.1\.alien'),
        (lambda s: {**s, 'alien': s[WEIGHT]}, 'and 1 other tensors, such as alien'),
        (lambda s: {**s, WEIGHT: torch.zeros(24, 17)}, rf'{WEIGHT} is \[24, 17\] instead of \[24, 16\]'),
        (lambda s: without(s, WEIGHT), r'1 tensors are missing, such as stitch_layers\.0\.weight'),
        (
            lambda s: without(without(s, WEIGHT), 'stitch_layers.0.0.transform.bias'),
            r'holds 3 stitch layers, but a0, a1, a2 have 4 \(window 2, step 1\) or 2 \(window 2, step 2\)',
        ),
        (lambda s: {'a': 1}, 'holds no table of tensors'),
        (lambda s: [s], 'holds no table of tensors'),
        (
            lambda s: {'conv.weight': s[WEIGHT]},
            'no checkpoint of the published .* 0 anchors, 0 stitch layers and 1 other',
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(tmp_path, deit, change, told):
    torch.save(change(deit.state()), tmp_path / 'x.pth')
    with pytest.raises(NoWeights, match=told) as caught:
        load_official(tmp_path / 'x.pth', deit.anchors())
    assert '\n' not in str(caught.value)
    assert str(tmp_path / 'x.pth') in str(caught.value)


def test_what_cannot_be_read_is_refused(tmp_path, deit):
    with pytest.raises(NoWeights, match='there is no file'):
        load_official(tmp_path / 'nothing.pth')
    for name in ('x.pth', 'x.safetensors'):
        (tmp_path / name).write_bytes(b'not weights')
        with pytest.raises(NoWeights, match=rf'{name} (holds no readable|is not loaded)'):
            load_official(tmp_path / name)
    torch.save(deit.state(), tmp_path / 'x.pth')
    with pytest.raises(NoWeights, match=r'anchor 0 of .*x\.pth is none of deit_tiny.*name the networks'):
        load_official(tmp_path / 'x.pth')
    with pytest.raises(SnnetError, match='holds 3 anchors, but 2 were named'):
        load_official(tmp_path / 'x.pth', 'deit_tiny,deit_small')


def test_the_window_is_read_off_the_number_of_stitch_layers(tmp_path):
    models = [shake(vit(width, 6)) for width in (16, 24)]
    for window, step, count in ((2, 1, 18), (2, 2, 14), (3, 3, 20), (3, 2, 19)):
        layers = (6 - window) // step + 1
        state = {f'anchors.{i}.{name}': v for i, model in enumerate(models) for name, v in vit_names(model).items()}
        for layer in range(layers):
            state[f'stitch_layers.0.{layer}.transform.weight'] = torch.randn(24, 16)
            state[f'stitch_layers.0.{layer}.transform.bias'] = torch.randn(24)
        torch.save(state, tmp_path / 'x.pth')
        asked = {} if window == step or (window, step) == (2, 1) else {'window': window, 'step': step}
        anchors = [snnet.as_anchor(vit(width, 6), f'w{width}') for width in (16, 24)]
        net = load_official(tmp_path / 'x.pth', anchors, **asked)
        assert (len(net.stitch_layers), len(net.stitches)) == (layers, count)


REAL = {
    vit_names: ['deit_tiny', 'deit_small', 'deit_base'],
    swin_names: ['swin_tiny', 'swin_small', 'swin_base'],
    resnet_names: ['resnet18', 'resnet50'],
    levit_names: ['levit_192', 'levit_256'],
}


@pytest.mark.parametrize(('names', 'known'), REAL.items())
def test_networks_of_the_paper_are_known_by_their_shapes(names, known):
    with torch.device('meta'):
        models = [timm.create_model(snnet.weights.ALIASES[name], num_classes=11) for name in known]
        state = {f'anchors.{i}.{name}': value for i, m in enumerate(models) for name, value in names(m).items()}
        state['stitch_layers.0.0.transform.bias'] = torch.zeros(1)
    parts, _ = _split('x.pth', state)
    for expected, model, part in zip(known, models, parts, strict=True):
        tensors = {new: state[old] for new, old in part.items()}
        assert _guess('anchor', tensors) == (expected, {})
        assert {k: v.shape for k, v in tensors.items() if 'aux_bn' not in k} == {
            k: v.shape for k, v in model.state_dict().items()
        }


def test_a_levit_file_of_real_size_needs_no_names(tmp_path):
    models = [
        shake(timm.create_model(name, num_classes=10, distilled=d))
        for name, d in (('levit_128s', True), ('levit_192', False))
    ]
    state = {f'anchors.{i}.{name}': v for i, model in enumerate(models) for name, v in levit_names(model).items()}
    for stage, widths, depth in ((0, (192, 128), 2), (1, (288, 256), 3)):
        for layer in range(depth):
            state[f'stitch_layers.{stage}.0.{layer}.transform.weight'] = torch.randn(*widths) / 20
            state[f'stitch_layers.{stage}.0.{layer}.transform.bias'] = torch.zeros(widths[0])
    torch.save({'model': state}, tmp_path / 'x.pth')
    net = load_official(tmp_path / 'x.pth')
    assert (net.title, net.num_classes, net.anchor(0).official) == ('levit_128s > levit_192', 10, True)
    with torch.no_grad():
        for i, model in enumerate(models):
            assert torch.allclose(net(images(224, 1), stitch=i), model.eval()(images(224, 1)), atol=1e-4, rtol=1e-4)
    net.save_pretrained(tmp_path / 'net')
    assert StitchableNet.from_pretrained(tmp_path / 'net').stitches == net.stitches
