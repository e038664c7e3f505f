"""Gradients of anchors, stitches and reassembled networks: against timm's own networks, legs run by hand, formulas."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torch.nn.utils import parametrize

import snnet
from snnet.anchors.boundary import Boundary
from snnet.anchors.normalization import Normalization, Renormalize
from snnet.reassembly.build_reassembled import reassemble
from snnet.reassembly.join_layer import JoinLayer, boundary_behind_join
from snnet.reassembly.new_head import NewHead
from snnet.training.loss import BinaryLoss
from snnet.training.low_rank import LowRankUpdate
from tests.helpers.families import FAMILIES, family_net, images, shake
from tests.helpers.gradients import assert_gradients_equal, elementary, farthest, gradients, stored
from tests.reassembly.test_reassembled import PLANS, zoo

IMAGES = 6
"""A BatchNorm over n values takes two directions out of its gradient: of three values, mostly rounding is left."""
TOLERANCE = 1e-10
"""Of float64: sums of a few thousand terms, divided by the deviation of a few values, lose up to five digits."""
GRIDS = ((3, 4), (5, 1), (1, 5), (1, 1))


def values(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def without_chance(model):
    """A network that drops no paths."""
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return model


@pytest.mark.slow_for('convnext-True', 'regnet-True')
@pytest.mark.parametrize(
    ('name', 'training'),
    [
        *((name, training) for name in ('vit', 'swin', 'resnet') for training in (False, True)),
        ('levit', True),  # timm's LeViT keeps what it gathers in eval mode, so a second gradient is an error there
        ('convnext', True),
        ('regnet', True),
        pytest.param('convnext', False, marks=pytest.mark.slow),
        pytest.param('regnet', False, marks=pytest.mark.slow),
    ],
)
def test_an_anchor_has_the_gradients_of_its_network(name, training):
    """By an adapter or traced; the network itself gets contiguous tensors and BatchNorms of elementary operations."""
    family = FAMILIES[name]
    model = without_chance(shake(family.large().double())).train(training)
    twin, x = elementary(model), images(family.size, IMAGES).double()
    anchor = snnet.as_anchor(model, name, input_size=(3, family.size, family.size)).train(training)
    grad = values(IMAGES, anchor.num_classes, seed=1)
    wanted = gradients(twin, twin, x, grad)
    for how, given in stored(x):
        if 'stride' not in how:
            assert farthest(gradients(anchor, model, given, grad), wanted) <= TOLERANCE, how
    for how, given in stored(grad):
        assert farthest(gradients(anchor, model, x, given), wanted) <= TOLERANCE, how


def by_hand(net, stitch, x):
    """A stitch as its legs and stitch layers, one after the other."""
    anchors, chosen = {anchor.name: anchor for anchor in net.anchors}, net.stitches[stitch]
    for i, leg in enumerate(chosen.legs):
        x = net.layer(chosen.layers[i - 1])(x).contiguous() if i else x
        x = anchors[leg.anchor].run(x, leg.start, leg.stop).contiguous()
    return x


@pytest.mark.slow_for('swin-False', 'resnet-False')
@pytest.mark.parametrize(('name', 'training'), [('vit', True), ('swin', False), ('resnet', True), ('resnet', False)])
def test_a_stitch_has_the_gradients_of_its_legs(name, training):
    net = shake(family_net(name).double(), 2).train(training)
    twin, x = elementary(net), images(net.input_size[-1], IMAGES).double()
    for stitch in range(0, len(net.stitches), 3):
        grad = values(net.num_classes, IMAGES, seed=stitch).T
        found = gradients(lambda x, i=stitch: net(x, stitch=i), net, x.to(memory_format=torch.channels_last), grad)
        assert farthest(found, gradients(lambda x, i=stitch: by_hand(twin, i, x), twin, x, grad)) <= TOLERANCE


def test_an_extracted_stitch_has_the_gradients_of_the_net():
    """With BatchNorm statistics of its own as well, which an extracted stitch holds as its only ones."""
    net = family_net('resnet').double()
    snnet.recalibrate(net, [images(64, 8).double()], samples=8, shares=[0.5])
    x, grad = images(64, 3).double(), values(3, net.num_classes)
    for stitch in (0, 3):
        cut = net.extract(stitch)
        found, wanted = gradients(cut, cut, x, grad), gradients(lambda x, i=stitch: net(x, stitch=i), net, x, grad)
        assert torch.equal(found['input'], wanted['input'])
        norms = sorted(float(value.norm()) for key, value in found.items() if key != 'input')
        assert norms == sorted(float(value.norm()) for key, value in wanted.items() if key != 'input')


@pytest.mark.parametrize('size', [(2, 3, 3, 4), (2, 3, 5, 1), (1, 3, 1, 5), (1, 3, 1, 1)])
def test_a_change_of_normalization_has_the_gradient_of_its_equation(size):
    given, wanted = Normalization((0.5,) * 3, (0.25,) * 3), Normalization((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    change = Renormalize(given, wanted)

    class Equation(nn.Module):
        def forward(self, x):
            pixels = x * 0.25 + 0.5
            mean, std = (torch.tensor(t, dtype=x.dtype).view(-1, 1, 1) for t in (wanted.mean, wanted.std))
            return (pixels - mean) / std

    few_roundings = 4 * torch.finfo(torch.float32).eps
    assert_gradients_equal(change, Equation(), values(*size), few_roundings)


class Pooled(nn.Module):
    """The new head as a sum over cells."""

    def __init__(self, head):
        super().__init__()
        self.front, self.fc = head.front, head.fc

    def forward(self, x):
        if self.front.layout == 'NCHW':
            x = x.flatten(2).transpose(1, 2)
        cells = x.flatten(1, -2)[:, self.front.prefix :]
        return (cells.sum(1) / cells.shape[1]) @ self.fc.weight.T + self.fc.bias


@pytest.mark.parametrize('layout', ['NCHW', 'NHWC', 'NLC'])
@pytest.mark.parametrize('grid', GRIDS)
def test_a_new_head_has_the_gradient_of_its_equation(grid, layout):
    front = Boundary(4, grid, layout, 2 if layout == 'NLC' else 0)
    shapes = {'NCHW': (4, *grid), 'NHWC': (*grid, 4), 'NLC': (front.tokens, 4)}
    head = NewHead(front, 5).double()
    assert_gradients_equal(head, Pooled(copy.deepcopy(head)), values(3, *shapes[layout]), TOLERANCE)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('grid', GRIDS)
def test_a_norm_before_a_head_or_a_join_gets_the_right_gradient(grid, training):
    """What they hand back to an ordinary BatchNorm of an anchor is stored as torch's BatchNorm expects."""
    front = Boundary(4, grid, 'NCHW')
    ends = [Boundary(6, grid, layout) for layout in ('NCHW', 'NHWC', 'NLC')]
    after = [
        NewHead(front, 5),
        *(JoinLayer(front, boundary_behind_join(front, e, resample=True), 'plain') for e in ends),
    ]
    for module in after:
        model = shake(nn.Sequential(nn.BatchNorm2d(4), module).double(), 1).train(training)
        assert_gradients_equal(model, elementary(model), values(IMAGES, 4, *grid), TOLERANCE, inputs=False)


@pytest.mark.quick('vit[:2] > deit[1:]-True')
@pytest.mark.parametrize(
    ('legs', 'training'),
    [(legs, training) for legs in PLANS.values() for training in (False, True) if training or 'levit' not in legs],
)
def test_a_reassembled_network_has_the_gradient_of_its_equation(legs, training):
    network = reassemble(legs, zoo(), stem='new', head='new', num_classes=5).double()
    without_chance(shake(network, 1)).train(training)
    anchor = snnet.as_anchor(network, 'reassembled', input_size=(3, 64, 64)).train(training)
    twin, x = elementary(network), images(64, IMAGES).double()
    for count in (IMAGES, 4):
        grad = values(5, count, seed=count).T
        wanted = gradients(twin, twin, x[:count], grad.contiguous())
        for run in (network, anchor):
            found = gradients(run, network, x[:count].to(memory_format=torch.channels_last), grad)
            assert farthest(found, wanted) <= 10 * TOLERANCE


@pytest.mark.parametrize('shape', [(3, 6), (2, 5, 6), (2, 1, 6)])
def test_a_low_rank_update_has_the_gradient_of_its_equation(shape):
    layer = nn.Linear(6, 4).double()
    parametrize.register_parametrization(layer, 'weight', LowRankUpdate(layer.weight, 2, torch.Generator()))
    shake(layer)
    x, grad = values(*shape), values(*shape[:-1], 4, seed=1)

    def equation(x):
        update = layer.parametrizations.weight[0]
        weight = layer.parametrizations.weight.original + update.up @ update.down / 2
        return (x.unsqueeze(-2) * weight).sum(-1) + layer.bias

    wanted = gradients(equation, layer, x, grad)
    for _, given in stored(grad):
        assert farthest(gradients(layer, layer, x, given), wanted) <= TOLERANCE


def test_the_binary_loss_has_the_gradient_of_its_equation():
    logits, labels = values(4, 3), torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]])
    z = logits.requires_grad_()
    (wanted,) = torch.autograd.grad((z.exp().log1p() - labels * z).mean(), z)
    for _, given in stored(logits.detach()):
        x = given.requires_grad_()
        (found,) = torch.autograd.grad(BinaryLoss(smoothing=0.0)(x, labels), x)
        torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=0)
