"""Files as the published code writes them: names of timm 0.6.12, legs run by hand from the original networks."""

from __future__ import annotations

import argparse
import pickle
import re
import sys
from collections import OrderedDict
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.levit import Levit, LevitDistilled
from torch import nn
from torch.nn import functional as F

import snnet
from snnet import NoWeights, SnnetError, StitchableNet, list_stitches, load_official
from snnet.anchors.names import ALIASES
from snnet.net.official import _recognize
from snnet.net.official_file import OfficialFile
from snnet.net.official_names import names_today
from snnet.net.official_space import window_space
from snnet.net.preprocessing import preprocessing
from snnet.utils.skip_random_weights import SkipRandomWeights
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


@pytest.mark.quick('deit')
@pytest.mark.parametrize('name', CASES)
def test_every_stitch_of_a_published_file_computes_what_its_legs_do_by_hand(tmp_path, name):
    published = Published(name)
    torch.save(with_settings(published.state()), tmp_path / 'checkpoint.pth')
    net = load_official(tmp_path / 'checkpoint.pth', published.anchors(), window=2, step=1)
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
    net = load_official(tmp_path / 'x.pth', deit.anchors(), window=2, step=1)
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
    net = load_official(path, deit.anchors(), window=2, step=1)
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
        with pytest.raises(
            NoWeights, match=r'evil\.pth holds objects beside its weights that only running code could read'
        ) as caught:
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
        (
            lambda s: {**s, 'anchors.1.alien': s[WEIGHT]},
            r'1 tensors are not part of the net, such as anchors\.1\.alien',
        ),
        (lambda s: {**s, 'alien': s[WEIGHT]}, 'and 1 other tensors, such as alien'),
        (lambda s: {**s, WEIGHT: torch.zeros(24, 17)}, rf'{WEIGHT} is \[24, 17\] instead of \[24, 16\]'),
        (lambda s: without(s, WEIGHT), r'1 tensors are missing, such as stitch_layers\.0\.weight'),
        (
            lambda s: without(without(s, WEIGHT), 'stitch_layers.0.0.transform.bias'),
            r'holds 3 stitch layers of 2 pairs of anchors, which no space of a0, a1, a2 has with window=2 and step=1 ',
        ),
        (lambda s: {'a': 1}, 'holds no table of tensors'),
        (lambda s: [s], 'holds no table of tensors'),
        (
            lambda s: {'conv.weight': s[WEIGHT]},
            'not a checkpoint of the published .* 0 anchors, 0 stitch layers and 1 other',
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(tmp_path, deit, change, told):
    torch.save(change(deit.state()), tmp_path / 'x.pth')
    with pytest.raises(NoWeights, match=told) as caught:
        load_official(tmp_path / 'x.pth', deit.anchors(), window=2, step=1)
    assert '\n' not in str(caught.value)
    assert str(tmp_path / 'x.pth') in str(caught.value)


@pytest.mark.slow  # seconds
def test_what_cannot_be_read_is_refused(tmp_path, deit):
    with pytest.raises(NoWeights, match='there is no file'):
        load_official(tmp_path / 'nothing.pth')
    for name in ('x.pth', 'x.safetensors'):
        (tmp_path / name).write_bytes(b'not weights')
        with pytest.raises(NoWeights, match=rf'{name} is a text, not weights'):
            load_official(tmp_path / name)
    torch.save(deit.state(), tmp_path / 'x.pth')
    with pytest.raises(NoWeights, match=r'anchor 0 of .*x\.pth is none of deit_tiny.*name the networks'):
        load_official(tmp_path / 'x.pth')
    with pytest.raises(SnnetError, match='holds 3 anchors, but 2 were named'):
        load_official(tmp_path / 'x.pth', 'deit_tiny,deit_small')


def windows_of(depth, window, step):
    """First blocks at 0, step, 2 step, ... while any block is left."""
    firsts = [f for f in range(0, depth, step) if f == 0 or f - step + window < depth]
    return [range(first, min(first + window, depth)) for first in firsts]


def windowed(depth, window, step):
    """(j, k, number of the stitch layer) in the order of ids, each in its first window."""
    joins = {}
    for layer, blocks in enumerate(windows_of(depth, window, step)):
        for j in blocks:
            for k in blocks:
                joins.setdefault((j, k), layer)
    return [(j, k, layer) for (j, k), layer in joins.items()]


def save_windowed(path, models, layers):
    state = {f'anchors.{i}.{name}': v for i, model in enumerate(models) for name, v in vit_names(model).items()}
    for layer in range(layers):
        state[f'stitch_layers.0.{layer}.transform.weight'] = torch.full((24, 16), layer / 10)
        state[f'stitch_layers.0.{layer}.transform.bias'] = torch.full((24,), float(layer))
    torch.save(state, path)


def file_of(layers):
    """A file of so many stitch layers, without its anchors."""
    names = {(0, 0, i): {'weight': f'{i}'} for i in range(layers)}
    return OfficialFile(Path('x.pth'), {f'{i}': torch.zeros(24, 16) for i in range(layers)}, [], names)


@pytest.fixture(scope='module')
def six_blocks():
    return [snnet.as_anchor(vit(width, 6), f'w{width}', input_size=(3, 32, 32)) for width in (16, 24)]


@pytest.mark.parametrize('window', range(1, 7))
@pytest.mark.parametrize('step', range(1, 7))
def test_a_file_of_any_window_gives_the_right_space_or_a_refusal_that_names_it(six_blocks, window, step):
    joins = windowed(6, window, step)
    file = file_of(len(windows_of(6, window, step)))
    space = window_space(file, six_blocks, window, step)
    keys = {layer: key[2] for key, layer in space.layers.items()}
    found = [(s.legs[0].stop - 1, s.legs[1].start, keys[s.layers[0]]) for s in space.stitches[2:]]
    assert found == joins
    answer = space_or_refusal(file, six_blocks)
    if isinstance(answer, str):
        told = re.findall(r'window=(\d), step=(\d) \((\d+) stitches\)', answer)
        assert len(told) > 1
        assert str(len(joins) + 2) in {stitches for *_, stitches in told}
        assert '\n' not in answer
    else:
        assert answer == space


def space_or_refusal(file, anchors):
    try:
        return window_space(file, anchors)
    except NoWeights as error:
        return str(error)


@pytest.mark.slow  # seconds
def test_the_paper_s_own_window_needs_no_words_on_twelve_blocks(tmp_path):
    models = [shake(vit(width, 12)) for width in (16, 24)]
    anchors = [snnet.as_anchor(model, f'w{i}') for i, model in enumerate(models)]
    save_windowed(tmp_path / 'x.pth', models, 11)
    assert len(load_official(tmp_path / 'x.pth', anchors).stitches) == 36
    save_windowed(tmp_path / 'x.pth', models, 6)
    with pytest.raises(NoWeights, match=r'window=2, step=2 \(26 stitches\).*window=3, step=2 \(46 stitches\)'):
        load_official(tmp_path / 'x.pth', anchors)
    assert len(load_official(tmp_path / 'x.pth', anchors, window=3).stitches) == 46
    with pytest.raises(NoWeights, match='no space of w0, w1 has with window=3 and step=3 .* give 4'):
        load_official(tmp_path / 'x.pth', anchors, window=3, step=3)


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('together', [True, False])
def test_a_file_without_the_nearest_rule_has_a_pair_more(tmp_path, deit, together):
    """Whether the pair of the outer anchors comes last, or second as the first anchor's other one."""
    state = deit.state()
    outer = {f'{layer}.transform.weight': torch.full((32, 16), float(layer)) for layer in range(2)}
    outer |= {f'{layer}.transform.bias': torch.full((32,), float(layer)) for layer in range(2)}
    if together:
        state = {re.sub(r'^stitch_layers\.1\.', 'stitch_layers.2.', name): value for name, value in state.items()}
    state |= {f'stitch_layers.{1 if together else 2}.{name}': value for name, value in outer.items()}
    torch.save(state, tmp_path / 'x.pth')
    near = load_official_of(deit.state(), tmp_path / 'near.pth', deit)
    for nearest in (None, False):
        net = load_official(tmp_path / 'x.pth', deit.anchors(), window=2, step=1, nearest=nearest)
        assert len(net.stitches) == len(list_stitches(deit.anchors(), nearest=False))
        assert net.stitches[: len(near.stitches)] == near.stitches
        with torch.no_grad():
            x = images(32)
            assert all(torch.equal(net(x, stitch=i), near(x, stitch=i)) for i in range(len(near.stitches)))
        jump = next(s for s in net.stitches if [leg.anchor for leg in s.legs] == ['a0', 'a2'])
        assert torch.equal(net.layer(jump.layers[0]).weight, outer['0.transform.weight'])
    with pytest.raises(NoWeights, match='6 stitch layers of 3 pairs of anchors, which no space of a0, a1, a2 has'):
        load_official(tmp_path / 'x.pth', deit.anchors(), window=2, step=1, nearest=True)


def load_official_of(state, path, deit):
    torch.save(state, path)
    return load_official(path, deit.anchors(), window=2, step=1)


def deit3(width, depth):
    return vit(width, depth, name='deit3_small_patch16_224')


@pytest.mark.parametrize('ratio', [1, 2])
@pytest.mark.parametrize('spare', [0, 1])
def test_a_file_of_snnetv2_computes_what_its_legs_do_by_hand(tmp_path, ratio, spare):
    depth, rank = 3, 2
    models = [shake(deit3(16, depth)).eval(), shake(deit3(24, depth * ratio), 1).eval()]
    state = {
        f'anchors.{i}.' + re.sub(r'ls([12])\.gamma', r'gamma_\1', name): value
        for i, model in enumerate(models)
        for name, value in model.state_dict().items()
    }
    draw = torch.Generator().manual_seed(3)
    layers = {}
    for way, (d, e) in enumerate(((16, 24), (24, 16))):
        for i in range(depth - 1 + spare):
            weight, down, up = (torch.randn(*shape, generator=draw) / 4 for shape in ((e, d), (rank, d), (e, rank)))
            bias, name = torch.randn(e, generator=draw), f'stitch_layers.{way}.{i}.transform'
            state |= {f'{name}.weight': weight, f'{name}.bias': bias, f'{name}.lora_A': down, f'{name}.lora_B': up}
            layers[way, i] = lambda x, w=weight + up @ down / rank, b=bias: x @ w.T + b
    torch.save({'model': state}, tmp_path / 'x.pth')
    net = load_official(
        tmp_path / 'x.pth', [snnet.as_anchor(deit3(16, depth), 's'), snnet.as_anchor(deit3(24, depth * ratio), 'l')]
    )
    small, large = models

    def embed(model, x):
        tokens = model.patch_embed(x) + model.pos_embed
        return torch.cat([model.cls_token.expand(len(x), -1, -1), tokens], dim=1)

    def end(model, x):
        return model.head(model.norm(x)[:, 0])

    x, r = images(32), ratio
    n = range(depth - 1)
    pairs = [(i, j) for i in n for j in n if i < j]
    up, down = (lambda i: layers[0, i]), (lambda i: layers[1, i])
    with torch.no_grad():
        first, second = embed(small, x), embed(large, x)
        expected = [small(x), large(x)]
        expected += [end(large, large.blocks[r * (i + 1) :](up(i)(small.blocks[: i + 1](first)))) for i in n]
        expected += [end(small, small.blocks[i + 1 :](down(i)(large.blocks[: r * (i + 1)](second)))) for i in n]
        for i, j in pairs:
            middle = small.blocks[i + 1 : j + 1](down(i)(large.blocks[: r * (i + 1)](second)))
            expected.append(end(large, large.blocks[r * (j + 1) :](up(j)(middle))))
        for i, j in pairs:
            middle = large.blocks[r * (i + 1) : r * (j + 1)](up(i)(small.blocks[: i + 1](first)))
            expected.append(end(small, small.blocks[j + 1 :](down(j)(middle))))
        assert len(net.stitches) == len(expected)
        for stitch, logits in enumerate(expected):
            torch.testing.assert_close(net(x, stitch=stitch), logits, rtol=1e-4, atol=1e-4)
    names = [name for name, _ in net.named_parameters() if name.startswith('stitch_layers')]
    assert len(names) == 2 * 2 * (depth - 1), 'updates are merged'


def test_an_update_that_does_not_fit_is_refused(tmp_path):
    weight = {'stitch_layers.0.0.transform.weight': torch.zeros(4, 3)}
    torch.save({**weight, 'stitch_layers.0.0.transform.lora_A': torch.zeros(2, 3)}, tmp_path / 'x.pth')
    with pytest.raises(NoWeights, match=r'a part of a low-rank update only: .*lora_B is missing'):
        load_official(tmp_path / 'x.pth')
    torch.save(
        {
            **weight,
            'stitch_layers.0.0.transform.lora_A': torch.zeros(2, 4),
            'stitch_layers.0.0.transform.lora_B': torch.zeros(4, 2),
        },
        tmp_path / 'x.pth',
    )
    with pytest.raises(NoWeights, match=r'does not fit its weight: .*lora_A \[2, 4\]'):
        load_official(tmp_path / 'x.pth')


def test_other_classes_get_new_classifiers_and_everything_else_stays(tmp_path, caplog):
    published = Published('deit')  # of its own: classifiers of the anchors are replaced
    torch.save(published.state(), tmp_path / 'x.pth')
    plain = load_official(tmp_path / 'x.pth', Published('deit').anchors(), window=2, step=1, num_classes=7)
    net = load_official(tmp_path / 'x.pth', published.anchors(), window=2, step=1, num_classes=3)
    assert '7 classes are replaced by new ones for 3' in caplog.text
    assert [anchor.num_classes for anchor in net.anchors] == [3, 3, 3]
    assert net(images(32), stitch=4).shape == (2, 3)
    before, after = plain.state_dict(), net.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {
        f'anchors.{i}.model.head.{leaf}' for i in range(3) for leaf in ('weight', 'bias')
    }


def test_an_official_net_is_evaluated_as_published_and_keeps_that_when_saved(tmp_path, deit):
    torch.save(deit.state(), tmp_path / 'x.pth')
    net = load_official(tmp_path / 'x.pth', deit.anchors(), window=2, step=1)
    net.save_pretrained(tmp_path / 'net')
    for found in (net, StitchableNet.from_pretrained(tmp_path / 'net')):
        config = preprocessing(found)
        assert (config['crop_pct'], config['interpolation']) == (0.875, 'bicubic')


REAL = {
    vit_names: ['deit_tiny', 'deit_small', 'deit_base'],
    swin_names: ['swin_tiny', 'swin_small', 'swin_base'],
    resnet_names: ['resnet18', 'resnet50'],
    levit_names: ['levit_192', 'levit_256'],
}


@pytest.mark.quick('resnet_names-known2')
@pytest.mark.parametrize(('names', 'known'), REAL.items())
def test_networks_of_the_paper_are_known_by_their_shapes(names, known):
    with torch.device('meta'), SkipRandomWeights():
        models = [timm.create_model(ALIASES[name], num_classes=11) for name in known]
        state = {f'anchors.{i}.{name}': value for i, m in enumerate(models) for name, value in names(m).items()}
    file = OfficialFile(Path('x.pth'), state, [names_today(names(model)) for model in models], {})
    for i, (expected, model) in enumerate(zip(known, models, strict=True)):
        tensors = {new: state[f'anchors.{i}.{old}'] for new, old in file.anchors[i].items()}
        assert _recognize('anchor', tensors) == (expected, {})
        assert {k: v.shape for k, v in tensors.items() if 'aux_bn' not in k} == {
            k: v.shape for k, v in model.state_dict().items()
        }


@pytest.mark.slow
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
