from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

import snnet
from snnet import StitchableNet
from snnet.anchors.boundary import Boundary
from snnet.reparam import (
    STITCH,
    Grower,
    expand,
    fold,
    folded,
    structure_of,
)
from snnet.reparam.rep_layers import RepStitchLayer
from snnet.stitching.stitch_layer import StitchLayer
from tests.helpers.families import build, cross_net, family_net, images, resnet, shake, three_vits


def resnets(**options):
    small, large = (lambda w=w: resnet('resnet18', (1, 2, 2, 1), w, zero_init_last=False) for w in (4, 8))
    return build(('small', small), ('large', large), size=32, **options).double()


def outputs(net, x):
    net.eval()
    return [net(x, stitch=i).detach() for i in range(len(net.stitches))]


def farthest(now, before):
    return max(float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in zip(now, before, strict=True))


def observe(net, grower, optimizer, stitch, seed):
    net.train()
    optimizer.zero_grad()
    F.cross_entropy(net(images(32, 6, seed=seed).double(), stitch=stitch), torch.arange(6)).backward()
    grower.observe()
    optimizer.step()


LAYOUTS = {
    'maps': (Boundary(8, (3, 4), 'NCHW'), Boundary(12, (3, 4), 'NCHW')),
    'windows': (Boundary(8, (3, 4), 'NHWC'), Boundary(8, (3, 4), 'NCHW')),
    'tokens': (Boundary(6, (3, 4), 'NLC', 2), Boundary(6, (3, 4), 'NLC', 2)),
    'maps to tokens': (Boundary(8, (3, 4), 'NCHW'), Boundary(8, (3, 4), 'NLC')),
    'odd widths': (Boundary(3, (3, 4), 'NCHW'), Boundary(3, (3, 4), 'NHWC')),
}
SHAPES = {'NCHW': lambda b: (b.channels, *b.grid), 'NHWC': lambda b: (*b.grid, b.channels)}


@pytest.mark.parametrize('kinds', [*((kind,) for kind in STITCH), None])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_stitch_layer_grows_and_folds_without_a_trace(layout, kinds):
    front, end = LAYOUTS[layout]
    layer = StitchLayer(front, end).double()
    shape = SHAPES.get(front.layout, lambda b: (b.tokens, b.channels))(front)
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0)).double()
    plain, parameters, flops = layer(x), dict(layer.named_parameters()), layer.flops
    expand(layer, kinds, images=x)
    if (kinds == ('identity',) and front.channels != end.channels) or (kinds == ('grouped',) and front.channels == 3):
        assert type(layer) is StitchLayer
        return
    assert type(layer) is RepStitchLayer
    assert farthest([layer.eval()(x)], [plain]) <= 1e-14
    assert farthest([copy.deepcopy(layer).train()(x)], [plain]) <= 1e-13
    before = shake(layer, 1)(x)
    assert farthest([before], [plain]) > 0.1
    assert farthest([fold(layer)(x)], [before]) <= 1e-14
    assert {name: p is parameters[name] for name, p in layer.named_parameters()} == {'weight': True, 'bias': True}
    assert layer.flops == flops


@pytest.mark.slow
def test_every_stitch_keeps_its_output_at_every_change():
    net = resnets()
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    grower = Grower(net, 1, budget=1e12, optimizer=optimizer)
    x, changes = images(32).double(), []
    for step in range(5):
        observe(net, grower, optimizer, step % len(net.stitches), step)
        grower.cut = 1e9 if step == 3 else None
        before = outputs(net, x)
        changes += grower.step()
        assert farthest(outputs(net, x), before) <= 1e-13
    names = {change.name.split('.')[0] for change in changes if change.added}
    assert names == {'anchors', 'stitch_layers'}
    assert any(change.cut for change in changes)


def test_parameters_of_new_branches_take_part_in_the_stitches_that_run_them():
    net = resnets()
    plain = [net.parameter_names(i) for i in range(len(net.stitches))]
    expand(net, where=['anchors.0.model.layer1.0.conv1', 'stitch_layers.0'])
    for i, before in enumerate(plain):
        used = net.parameter_names(i)
        net.zero_grad()
        net.train()(images(32, 4).double(), stitch=i).sum().backward()
        assert used == {name for name, p in net.named_parameters() if p.grad is not None}
        for grown in ('anchors.0.model.layer1.0.conv1', 'stitch_layers.0'):
            assert any(name.startswith(f'{grown}.branches') for name in used) == (f'{grown}.weight' in before)


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('make', [resnets, three_vits, cross_net])
def test_costs_are_those_of_the_plain_net_to_the_unit(make):
    net = make()
    costs = [(r.flops, r.params) for r in snnet.measure_costs(net).records]
    expand(net)
    assert [(r.flops, r.params) for r in snnet.measure_costs(net).records] == costs


@pytest.mark.slow  # a few seconds
def test_a_folded_net_is_saved_and_comes_back(tmp_path):
    size = 64
    net = family_net('resnet')
    for i, (anchor, name) in enumerate(zip(net.anchors, ('resnet18', 'resnet50'), strict=True)):
        args = {'num_classes': 7, 'layers': [(2, 2, 2, 2), (2, 3, 4, 2)][i], 'channels': (8, 16, 24, 32)}
        anchor.source = snnet.Source(name, args)
    x = images(size)
    expand(net, images=x)
    shake(net, 3).double()
    before = outputs(net, x.double())
    folded(net).save_pretrained(tmp_path)
    assert structure_of(net)
    again = StitchableNet.from_pretrained(tmp_path).double()
    assert farthest(outputs(again, x.double()), before) <= 1e-5  # it is built in float32


@pytest.mark.slow  # a few seconds
def test_an_extracted_stitch_folds():
    net = resnets()
    expand(net)
    shake(net, 3).eval()
    x = images(32).double()
    for i in range(len(net.stitches)):
        module = fold(net.extract(i), x[:1])
        assert structure_of(module) == {}
        assert farthest([module(x)], [net(x, stitch=i)]) <= 1e-12


@pytest.mark.slow  # a few seconds
def test_statistics_of_stitches_are_folded_with_each_stitch():
    net = resnets()
    expand(net)
    shake(net, 3).eval()
    snnet.recalibrate(net, [images(32, 8).double()], samples=8, shares=[1])
    assert net.statistics is not None
    x = images(32).double()
    for i in range(len(net.stitches)):
        assert farthest([fold(net.extract(i), x[:1])(x)], [net(x, stitch=i)]) <= 1e-12


def test_an_update_of_low_rank_is_merged_before_growing():
    layer = StitchLayer(*LAYOUTS['maps'])
    layer.start_update(2)
    with pytest.raises(snnet.SnnetError, match='it has a low-rank update: merge it first'):
        expand(layer)


def test_a_copy_of_a_growing_net_does_not_grow_along():
    net = resnets()
    grower = Grower(net, 1)
    twin = copy.deepcopy(net)
    observe(net, grower, torch.optim.SGD(net.parameters(), 0.1), 0, 0)
    twin.train()(images(32, 4, seed=5).double())
    assert grower.step()
    assert structure_of(net)
    assert structure_of(twin) == {}
