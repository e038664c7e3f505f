"""Low-rank updates: what is trained, what it costs, and that nothing of them is left in what is saved."""

from __future__ import annotations

import copy

import pytest
import torch

import snnet
from snnet.stitching.stitch_layer import StitchLayer, merged_state
from snnet.training.optimizer import OptimizerSettings, parameter_groups
from snnet.training.trainer import train
from tests.helpers.families import family_net, images, three_vits
from tests.helpers.runs import train_settings

RANK = 2


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def layer_of(layout='NLC', channels=(12, 20)):
    front, end = (snnet.Boundary(width, (2, 2), layout) for width in channels)
    return StitchLayer(front, end)


def features(layout, seed=0):
    shape = {'NLC': (3, 4, 12), 'NHWC': (3, 2, 2, 12), 'NCHW': (3, 12, 2, 2)}[layout]
    return torch.randn(shape, generator=draw(seed))


def updated(layer, rank=RANK):
    """The layer with an update that has been trained."""
    layer.start_update(rank, draw())
    torch.nn.init.normal_(layer.up, generator=draw(1))
    return layer


def net_with_updates(**options):
    net = three_vits(**options)
    for layer in map(net.layer, range(len(net.stitch_layers))):
        updated(layer)
    return net


@pytest.mark.parametrize('layout', ['NLC', 'NHWC', 'NCHW'])
def test_an_update_changes_nothing_at_first_and_adds_b_a_over_r_when_trained(layout):
    layer, x = layer_of(layout), features(layout)
    with torch.no_grad():
        before = layer(x)
        layer.start_update(RANK, draw())
        assert torch.equal(layer(x), before)
        layer.up.normal_(generator=draw(1))
        change = (layer(x) - before).movedim(1, -1) if layout == 'NCHW' else layer(x) - before
        vectors = x.movedim(1, -1) if layout == 'NCHW' else x
        torch.testing.assert_close(change, vectors @ layer.down.T @ layer.up.T / RANK, rtol=1e-4, atol=1e-5)
        assert change.abs().max() > 0.1


def test_update_and_bias_are_trained_and_the_weight_is_frozen():
    layer = updated(layer_of())
    layer(features('NLC')).square().sum().backward()
    assert layer.weight.grad is None
    assert {name for name, p in layer.named_parameters() if p.grad is not None and p.grad.any()} == {
        *('bias', 'down', 'up')
    }
    assert (layer.down.shape, layer.up.shape) == ((RANK, 12), (20, RANK))


@pytest.mark.parametrize('layout', ['NLC', 'NCHW'])
def test_merging_keeps_the_output_bit_for_bit_and_leaves_a_plain_layer(layout):
    layer, x = updated(layer_of(layout)), features(layout)
    with torch.no_grad():
        before = layer(x)
        twin = layer.merged()
        assert layer.down is not None
        layer.merge()
        assert torch.equal(layer(x), before)
        assert torch.equal(twin(x), before)
    for one in (layer, twin):
        assert set(one.state_dict()) == {'weight', 'bias'}
        assert one.weight.requires_grad
    layer.load_state_dict(layer_of(layout).state_dict())


def test_merging_without_an_update_leaves_a_frozen_layer_frozen():
    layer = layer_of()
    layer.requires_grad_(False)
    layer.merge()
    assert not layer.weight.requires_grad


def test_a_rank_is_no_more_than_the_narrower_side_has_channels():
    layer = layer_of()
    layer.start_update(100)
    assert (layer.down.shape, layer.up.shape) == ((12, 12), (20, 12))


def test_the_generator_decides_the_update():
    first, second, third = layer_of(), layer_of(), layer_of()
    for layer, seed in ((first, 0), (second, 0), (third, 1)):
        layer.start_update(RANK, draw(seed))
    assert torch.equal(first.down, second.down)
    assert not torch.equal(first.down, third.down)
    assert 0 < first.down.abs().max() <= 12**-0.5


@pytest.mark.parametrize(('started', 'rank', 'match'), [(False, 0, 'rank .* at least 1, not 0'), (True, 1, 'merge')])
def test_an_update_that_cannot_be_is_refused(started, rank, match):
    layer = updated(layer_of()) if started else layer_of()
    with pytest.raises(snnet.SnnetError, match=match):
        layer.start_update(rank)


def test_parameters_that_take_part_include_the_update():
    net = net_with_updates()
    net(images(32), stitch=5).sum().backward()
    names = {name for name, p in net.named_parameters() if p.grad is not None}
    (layer,) = net.stitches[5].layers
    assert net.parameter_names(5) == names | {f'stitch_layers.{layer}.weight'}
    assert {f'stitch_layers.{layer}.{name}' for name in ('down', 'up', 'bias')} <= names


@pytest.mark.slow  # a second
def test_costs_are_those_of_the_merged_layers():
    assert snnet.measure_costs(net_with_updates()).records == three_vits().records


@pytest.mark.slow  # a second
def test_what_is_saved_or_extracted_is_merged_and_gives_the_same_output(tmp_path):
    net, x = net_with_updates(nearest=False), images(32)
    for row in range(len(net.anchors)):  # timm must be able to make the anchors again
        anchor = net.anchor(row)
        args = {'img_size': 32, 'patch_size': 8, 'num_heads': 2, 'depth': 3, 'num_classes': net.num_classes}
        anchor.source = snnet.Source('vit_tiny_patch16_224', {**args, 'embed_dim': anchor.boundaries[0].channels})
    net.save_pretrained(tmp_path)
    loaded = snnet.StitchableNet.from_pretrained(tmp_path)
    assert not [name for name in loaded.state_dict() if 'down' in name or name.endswith('.up')]
    with torch.no_grad():
        for stitch in (0, 5, len(net.stitches) - 1):
            expected = net(x, stitch=stitch)
            module = net.extract(stitch)
            assert torch.equal(loaded(x, stitch=stitch), expected)
            assert torch.equal(module(x), expected)
            assert sum(p.numel() for p in module.parameters()) == net.records[stitch].params
    assert all(net.layer(i).down is not None for i in range(len(net.stitch_layers)))


def test_the_merged_state_of_a_net_without_updates_is_its_state():
    net = three_vits()
    state = merged_state(net)
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_updates_have_the_rate_of_the_stitch_layers_and_frozen_weights_none():
    net = net_with_updates()
    groups = parameter_groups(net, OptimizerSettings(lr=1e-4, stitch_lr=1e-3))
    rate = {id(p): (group['lr'], group['weight_decay']) for group in groups for p in group['params']}
    for layer in map(net.layer, range(len(net.stitch_layers))):
        assert rate[id(layer.down)] == rate[id(layer.up)] == (1e-3, 0.05)
        assert rate[id(layer.bias)] == (1e-3, 0)
        assert id(layer.weight) not in rate


def test_a_deep_copy_keeps_the_update():
    layer = updated(layer_of())
    twin = copy.deepcopy(layer)
    assert torch.equal(twin.up, layer.up)
    assert twin.up is not layer.up


@pytest.mark.slow
def test_training_with_a_rank_moves_weights_by_no_more_than_that_rank(tmp_path):
    nets = []
    for epochs in (0, 2):
        settings = {'epochs': epochs, 'stitch_rank': RANK, 'lr': 1e-4, 'stitch_lr': 0.1}
        nets.append(snnet.StitchableNet.from_pretrained(train(train_settings(tmp_path / str(epochs), **settings))))
    changes = [nets[1].layer(i).weight - nets[0].layer(i).weight for i in range(len(nets[0].stitch_layers))]
    moved = [change for change in changes if change.abs().max() > 1e-3]
    assert moved
    for change in moved:
        spread = torch.linalg.svdvals(change.detach())
        assert (spread > 1e-4 * spread[0]).sum() <= RANK


@pytest.mark.quick('resnet')
@pytest.mark.parametrize('family', ['resnet', 'swin', 'levit of convolutions'])
def test_layers_of_every_layout_take_updates(family):
    net = family_net(family)
    x = images(net.input_size[1])
    with torch.no_grad():
        before = net(x, stitch=3)
        for layer in map(net.layer, range(len(net.stitch_layers))):
            updated(layer)
        after = net(x, stitch=3)
        assert not torch.allclose(after, before)
        assert torch.equal(net.extract(3)(x), after)
