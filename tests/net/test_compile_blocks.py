from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

import snnet
from snnet.net import compile_blocks as by_block
from snnet.net.compile_blocks import TensorDropPath, covering_stitches
from tests.helpers.families import CLASSES, FAMILIES, build, family_net, images, resnet, shared_net, vit


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def dropping(kind: str) -> snnet.StitchableNet:
    """Two anchors whose blocks all have another rate of drop path, the first ones none."""
    if kind == 'vit':
        return build(('a', partial(vit, 16, drop_path_rate=0.4)), ('b', partial(vit, 24, drop_path_rate=0.3)), size=32)
    makers = [(str(width), partial(resnet, 'resnet18', (1, 2, 1, 1), width, drop_path_rate=0.4)) for width in (8, 12)]
    return build(*makers, size=32)


def step(net: nn.Module, x: Tensor, **stitch: int) -> list[Any]:
    """Logits, gradients and buffers of a training step with fixed random numbers."""
    torch.manual_seed(3)
    y = net(x, **stitch)
    grads = torch.autograd.grad(y.square().sum(), list(net.parameters()), allow_unused=True)
    return [y.detach(), *grads, *(buffer.clone() for buffer in net.buffers())]


def close(found: list[Any], wanted: list[Any]) -> bool:
    return all(
        a is b if a is None or b is None else torch.allclose(a, b, rtol=1e-4, atol=1e-5)
        for a, b in zip(found, wanted, strict=True)
    )


def is_compiled(net: nn.Module) -> bool:
    return any(module._compiled_call_impl is not None for module in net.modules())


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('name', ['vit', 'maps to tokens'])
def test_after_the_warm_up_no_stitch_and_no_batch_size_compiles_again(name):
    net = copy.deepcopy(shared_net(name))
    ids, batches = range(len(net.stitches)), [images(net.input_size[1], count) for count in (1, 2, 5)]
    with torch.inference_mode():
        wanted = [[net(x, stitch=i) for x in batches] for i in ids]
        count = snnet.warm_up(snnet.compile_blocks(net, 'eager'), batches[1])
        with torch.compiler.set_stance('fail_on_recompile'):
            found = [[net(x, stitch=i) for x in batches] for i in ids]
    assert count > 0
    assert all(close(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.slow  # seconds
@pytest.mark.parametrize(('kind', 'backend', 'shapes'), [('vit', 'aot_eager', 2), ('resnet', 'eager', 10)])
def test_training_makes_one_graph_a_shape_and_draws_the_bits_that_eager_draws(kind, backend, shapes):
    net = dropping(kind).train()
    eager = copy.deepcopy(net)
    assert snnet.warm_up(snnet.compile_blocks(net, backend), images(32, 6)) == shapes
    for count in (2, 6, 7):
        for i in range(len(net.stitches)):
            with torch.compiler.set_stance('fail_on_recompile'):
                found = step(net, images(32, count), stitch=i)
            assert close(found, step(eager, images(32, count), stitch=i))


@pytest.mark.slow  # a few seconds
def test_mixed_precision_behind_a_stitch_layer_is_warmed_up_too():
    net = snnet.compile_blocks(family_net('vit'), 'eager')
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        snnet.warm_up(net, images(32))
        with torch.compiler.set_stance('fail_on_recompile'):
            for i in range(len(net.stitches)):
                net(images(32, 3), stitch=i)


@pytest.mark.slow  # seconds
def test_frozen_anchors_are_warmed_up_with_and_without_gradients():
    net = snnet.compile_blocks(family_net('vit'), 'eager').train()
    net.anchors.requires_grad_(False).eval()
    snnet.warm_up(net, images(32))
    with torch.compiler.set_stance('fail_on_recompile'):
        for i, stitch in enumerate(net.stitches):
            assert net(images(32, 3), stitch=i).requires_grad == bool(stitch.layers)


def inputs(net: snnet.StitchableNet, stitches: list[int]) -> set[Any]:
    """What the modules of all anchors are given by some stitches in mixed precision."""
    seen: set[Any] = set()

    def note(module: nn.Module, args: tuple[Tensor]) -> None:
        x = args[0]
        seen.add((module, x.dtype, x.shape, x.stride(), x.requires_grad))

    modules = [module for i in range(len(net.anchors)) for module in net.anchor(i).line()]
    handles = [module.register_forward_pre_hook(note) for module in modules]
    with torch.autocast('cpu', torch.bfloat16):
        for i in stitches:
            net(images(net.input_size[1]), stitch=i)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize('name', ['vit of other depth', 'three legs', 'maps to tokens', 'resnet'])
def test_covering_stitches_give_every_module_all_inputs_that_any_stitch_gives_it(name):
    net = shared_net(name)
    everything = list(range(len(net.stitches)))
    chosen = covering_stitches(net)
    assert inputs(net, chosen) == inputs(net, everything)
    assert len(chosen) == len(set(chosen)) <= len(everything)
    assert len(chosen) < len(everything) or name in ('maps to tokens', 'resnet')


@pytest.mark.slow  # a few seconds
def test_nothing_remains_of_a_warm_up():
    net = snnet.compile_blocks(dropping('resnet').train(), 'eager')
    values = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    snnet.warm_up(net, images(32))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.slow  # seconds
def test_names_stay_and_copies_are_whole_and_not_compiled(tmp_path):
    models = [timm.create_model('test_vit', img_size=32, num_classes=CLASSES, drop_path_rate=0.2) for _ in 'ab']
    anchors = [snnet.as_anchor(model, name) for model, name in zip(models, 'ab', strict=True)]
    net = snnet.create_stitchable_net(anchors, pretrained=False).eval()
    names, flops = list(net.state_dict()), [record.flops for record in net.records]
    y = snnet.compile_blocks(net, 'eager')(images(32), stitch=3)
    assert is_compiled(net)
    assert list(net.state_dict()) == names
    net.save_pretrained(tmp_path / 'net')
    loaded = snnet.StitchableNet.from_pretrained(tmp_path / 'net')
    for twin, run in ((copy.deepcopy(net), {'stitch': 3}), (net.extract(3), {}), (loaded, {'stitch': 3})):
        assert not is_compiled(twin)
        torch.testing.assert_close(twin(images(32), **run), y)
    snnet.measure_costs(net)
    assert [record.flops for record in net.records] == flops


def single(kind: str) -> nn.Module:
    """A network other than a stitchable one, in eval mode."""
    sizes = {'img_size': 32, 'window_size': 4, 'embed_dim': 8, 'depths': (2, 1), 'num_heads': (1, 2)}
    makers = {
        'swin': lambda: snnet.as_anchor(timm.create_model('swin_tiny_patch4_window7_224', **sizes)),
        'levit': lambda: snnet.as_anchor(FAMILIES['levit'].small(), input_size=(3, 64, 64)),
        'extracted stitch': lambda: family_net('vit').extract(3),
    }
    return makers[kind]().eval()


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('kind', ['swin', 'levit', 'extracted stitch'])
def test_an_anchor_and_an_extracted_stitch_compile_too(kind):
    net = single(kind)
    x = images(64 if kind == 'levit' else 32, 3)
    with torch.no_grad():
        wanted = net(x)
        assert snnet.warm_up(snnet.compile_blocks(net, 'eager'), x) >= 4
        with torch.compiler.set_stance('fail_on_recompile'):
            for count in (1, 2, 3):
                torch.testing.assert_close(net(x[:count]), wanted[:count], rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # a few seconds
def test_compiling_twice_keeps_the_graphs_and_takes_in_a_replaced_block():
    net = snnet.compile_blocks(family_net('vit'), 'eager')
    anchor = net.anchor(0)
    with torch.no_grad():
        snnet.warm_up(net, images(32))
        assert snnet.warm_up(snnet.compile_blocks(net, 'eager'), images(32)) == 0
        anchor.model.blocks[1] = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16))
        assert snnet.warm_up(snnet.compile_blocks(net, 'eager'), images(32)) == 2


class Impossible(nn.Module):
    """A block that no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return 2 * x


@pytest.mark.slow  # a second
def test_a_block_that_cannot_be_compiled_runs_eagerly_with_one_warning():
    net = family_net('vit')
    blocks = net.anchor(0).model.blocks
    blocks[1], blocks[2] = Impossible(), Impossible()
    wanted = net(images(32), stitch=0)
    snnet.compile_blocks(net, 'eager')
    with pytest.warns(UserWarning, match='Impossible runs eagerly, because torch.compile failed: .+') as caught:
        found = [net(images(32), stitch=0) for _ in range(2)]
    assert len(caught) == 1
    assert close(found, [wanted, wanted])


@pytest.mark.slow  # seconds
def test_too_many_graphs_are_no_silent_fall_back(monkeypatch):
    monkeypatch.setattr(by_block, 'GRAPHS', 2)
    with torch._dynamo.config.patch(recompile_limit=2), torch.no_grad():  # of older torch
        net = snnet.compile_blocks(family_net('vit'), 'eager')
        net(images(32, 1), stitch=0), net(images(32, 2), stitch=0)
        with pytest.warns(UserWarning, match='Block runs eagerly, because torch.compile failed: more than 2 graphs'):
            net.double()(images(32, 2).double(), stitch=0)
    assert net(images(32).double(), stitch=1).dtype == torch.float64


@pytest.mark.slow  # a second
def test_an_input_at_fault_says_what_it_says_without_compilation():
    block = snnet.compile_blocks(family_net('vit'), 'eager').anchor(0).line()[0]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(RuntimeError, match='normalized_shape'):
            block(torch.zeros(2, 17, 5))
        assert block(torch.zeros(2, 17, 16)).shape == (2, 17, 16)


@pytest.mark.parametrize('rate', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('scale', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_drop_path_is_bit_for_bit_that_of_timm(rate, scale, dtype):
    x = images(8, 50).to(dtype)
    theirs, ours = DropPath(rate, scale), TensorDropPath(0.9, scale)
    ours.drop_prob = rate
    results = []
    for module in (theirs, ours):
        torch.manual_seed(1)
        results.append((module(x), torch.rand(3), module.eval()(x), module.drop_prob))
    for a, b in zip(*results, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
