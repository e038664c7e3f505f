"""Gradients of everything that grows: against elementary operations, finite differences, and what it folds into."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from snnet.anchors.boundary import Boundary
from snnet.reparam import CONVOLUTION, STITCH, expand, fold
from snnet.stitching.stitch_layer import StitchLayer
from snnet.utils.safe_batch_norm import SafeBatchNorm2d
from tests.helpers.families import images, shake
from tests.helpers.gradients import assert_gradients_equal, elementary, farthest, gradients, stored
from tests.reparam.test_stitch_branches import resnets

TOLERANCE = 1e-10
"""Of float64: sums of a few hundred terms, divided by the deviation of a few values, lose up to five digits."""

SIZES = {'map': (2, 8, 3, 4), 'column': (2, 8, 5, 1), 'row': (2, 8, 1, 5), 'one image': (1, 8, 3, 4)}
CONVOLUTIONS = {
    '3x3': {'padding': 1},
    '3x3 of stride 2': {'padding': 1, 'stride': 2},
    'depthwise': {'padding': 1, 'groups': 8, 'bias': False},
    'reflected': {'padding': 'same', 'padding_mode': 'circular'},
}


def values(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grown(module, kinds, training):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module.reset_parameters()
    return shake(expand(module.double(), kinds), 1).train(training)


def layers():
    """Stitch layers from and to every layout, on maps of every proportion, with and without prefix tokens."""
    for grid in ((3, 4), (5, 1), (1, 5), (1, 1)):
        for front in ('NCHW', 'NHWC', 'NLC'):
            for end in ('NCHW', 'NHWC', 'NLC'):
                yield Boundary(8, grid, front), Boundary(12, grid, end)
        yield Boundary(8, grid, 'NLC', 2), Boundary(8, grid, 'NLC', 2)


def features(boundary, count=3):
    shapes = {'NCHW': (boundary.channels, *boundary.grid), 'NHWC': (*boundary.grid, boundary.channels)}
    return values(count, *shapes.get(boundary.layout, (boundary.tokens, boundary.channels)))


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('size', [(2, 3, 2, 2), (1, 3, 2, 2), (2, 3, 4, 1), (2, 3, 1, 4), (1, 3, 4, 1), (2, 1, 3, 4)])
def test_a_norm_is_safe_for_every_way_to_store_input_and_gradient(size, training):
    norm = shake(SafeBatchNorm2d(size[1]).double(), 1).train(training)
    assert_gradients_equal(norm, elementary(norm), values(*size), TOLERANCE)


def test_strides_of_size_one_dimensions_mislead_torch_itself():
    """Fails once torch is mended; `SafeBatchNorm2d` can then go."""
    x, grad = values(1, 3, 2, 1), values(1, 2, 3).transpose(1, 2).unsqueeze(-1)
    norm = nn.BatchNorm2d(3).double().eval()
    assert farthest(gradients(norm, norm, x, grad), gradients(norm, norm, x, grad.contiguous())) > 0.1


@pytest.mark.slow_for('True-identity')
@pytest.mark.parametrize('kind', CONVOLUTION)
@pytest.mark.parametrize('training', [False, True])
def test_every_branch_of_a_convolution_has_the_gradient_of_its_equation(kind, training):
    for size in SIZES.values():
        block = grown(nn.Conv2d(8, 8, 3, padding=1), (kind,), training)
        assert_gradients_equal(block, elementary(block), values(*size), TOLERANCE, inputs=kind == 'identity')


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('options', CONVOLUTIONS)
def test_every_grown_convolution_has_the_gradient_of_its_equation(options, training):
    block = grown(nn.Conv2d(8, 8, 3, **CONVOLUTIONS[options]), None, training)
    for size in ('map', 'column', 'row'):
        if options != 'reflected' or size == 'map':
            assert_gradients_equal(block, elementary(block), values(*SIZES[size]), TOLERANCE, inputs=size == 'column')


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('training', [False, True])
def test_padding_that_follows_the_input_has_the_gradient_of_its_equation(training):
    block = grown(Conv2dSame(8, 8, 3, stride=2), None, training)
    assert_gradients_equal(block, elementary(block), values(2, 8, 5, 1), TOLERANCE)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('kind', [*CONVOLUTION])
def test_every_branch_of_a_convolution_agrees_with_finite_differences(kind, training):
    block = grown(nn.Conv2d(2, 2, 3, padding=1), (kind,), training)
    assert torch.autograd.gradcheck(block, values(2, 2, 2, 3).requires_grad_(), fast_mode=True)


QUICK = {((3, 4), 'NCHW'), ((3, 4), 'NLC'), ((5, 1), 'NHWC'), ((1, 5), 'NLC'), ((1, 1), 'NCHW')}
"""Grids and layouts of the front for the fast suite: the inputs and gradients of one pair are stored in 306 ways."""


@pytest.mark.parametrize('training', [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    'boundaries',
    [
        pytest.param((front, end), marks=() if (front.grid, front.layout) in QUICK else pytest.mark.slow)
        for front, end in layers()
    ],
    ids=str,
)
def test_every_grown_stitch_layer_has_the_gradient_of_its_equation(boundaries, training):
    layer = grown(StitchLayer(*boundaries), None, training)
    assert_gradients_equal(layer, elementary(layer), features(boundaries[0]), TOLERANCE)


@pytest.mark.parametrize('kind', STITCH)
def test_every_branch_of_a_stitch_layer_has_the_gradient_of_its_equation(kind):
    for layout in ('NCHW', 'NHWC', 'NLC'):
        for training in (False, True):
            front = Boundary(8, (5, 1), layout)
            layer = grown(StitchLayer(front, front), (kind,), training)
            assert_gradients_equal(layer, elementary(layer), features(front), TOLERANCE, inputs=False)


@pytest.mark.parametrize('boundaries', [*layers()], ids=str)
def test_a_grown_stitch_layer_in_eval_mode_has_the_input_gradient_of_what_it_folds_into(boundaries):
    layer, x = grown(StitchLayer(*boundaries), None, False), features(boundaries[0])
    plain = fold(copy.deepcopy(layer))
    shape = plain(x).shape
    wanted = gradients(plain, plain, x, values(*shape, seed=1))
    for _, grad in stored(values(*shape, seed=1)):
        found = gradients(layer, layer, x, grad)
        assert farthest({k: found[k] for k in ('output', 'input')}, {k: wanted[k] for k in ('output', 'input')}) < 1e-12


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('options', CONVOLUTIONS)
def test_a_grown_convolution_in_eval_mode_has_the_input_gradient_of_what_it_folds_into(options, size):
    if options == 'reflected' and size in ('column', 'row'):
        return
    block, x = grown(nn.Conv2d(8, 8, 3, **CONVOLUTIONS[options]), None, False), values(*SIZES[size])
    plain = fold(copy.deepcopy(block))
    shape = plain(x).shape
    wanted = gradients(plain, plain, x, values(*shape, seed=1))
    for _, grad in stored(values(*shape, seed=1)):
        found = gradients(block, block, x, grad)
        assert farthest({k: found[k] for k in ('output', 'input')}, {k: wanted[k] for k in ('output', 'input')}) < 1e-12


@pytest.mark.parametrize('training', [False, True])
def test_a_net_whose_stitch_layers_have_grown_has_the_gradient_of_its_equation(training):
    net = resnets()  # its last maps are 1x1
    expand(net, where=[name for name, module in net.named_modules() if isinstance(module, StitchLayer)])
    shake(net, 1).train(training)
    twin, x = elementary(net), images(32, 6).double()
    for stitch in range(2, len(net.stitches)):
        grad = values(6, net.num_classes, seed=stitch)
        found = gradients(lambda x, i=stitch: net(x, stitch=i), net, x, grad)
        assert farthest(found, gradients(lambda x, i=stitch: twin(x, stitch=i), twin, x, grad)) <= 1e-8


@pytest.mark.parametrize('training', [False, True])
def test_second_derivatives_agree_with_finite_differences(training):
    """Some scores and penalties differentiate a gradient."""
    column = Boundary(2, (3, 1), 'NLC')
    for block, x in (
        (grown(nn.Conv2d(2, 2, 3, padding=1), None, training), values(2, 2, 3, 3)),
        (grown(nn.Conv2d(2, 2, (1, 3), padding=(0, 1)), None, training), values(2, 2, 1, 3)),
        (grown(StitchLayer(column, column), None, training), values(3, 3, 2)),
    ):
        assert torch.autograd.gradgradcheck(block, x.requires_grad_(), fast_mode=True, atol=1e-4)


@pytest.mark.parametrize('layout', ['NCHW', 'channels_last', 'NLC'])
def test_in_bfloat16_a_grown_module_has_the_gradient_of_what_it_folds_into(layout):
    """Under autocast, up to the rounding of bfloat16 in each of its branches."""
    if layout == 'NLC':
        boundary = Boundary(8, (3, 4), 'NLC')
        block, x = grown(StitchLayer(boundary, boundary), None, False).float(), features(boundary).float()
    else:
        block, x = grown(nn.Conv2d(8, 8, 3, padding=1), None, False).float(), values(2, 8, 3, 4).float()
    if layout == 'channels_last':
        block, x = block.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    plain = fold(copy.deepcopy(block))
    grad = values(*plain(x).shape, seed=1).float()
    wanted = gradients(plain, plain, x, grad)
    with torch.autocast('cpu', torch.bfloat16):
        found = gradients(lambda x: block(x).float(), block, x, grad)
    most = (len(block.branches) + 1) ** 0.5 * 4 * 2**-8
    assert farthest({k: found[k] for k in ('output', 'input')}, {k: wanted[k] for k in ('output', 'input')}) < most
