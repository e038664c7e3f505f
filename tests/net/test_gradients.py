"""Gradients of what lies between anchors and behind them: against plain formulas and finite differences."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from einops import rearrange
from timm.layers import DropPath
from torch import nn
from torch.nn import functional as F

from snnet.anchors.boundary import Boundary
from snnet.calibration.divergence import divergence
from snnet.net.compile_blocks import TensorDropPath
from snnet.reassembly.join_layer import JoinLayer, boundary_behind_join
from snnet.reassembly.new_stem import NewStem
from snnet.reassembly.relayout import relayout
from snnet.stitching.stitch_layer import StitchLayer
from snnet.training.anchor_teachers import AnchorTeachers
from snnet.training.answer import Question
from snnet.training.distillation import DistillationLoss
from tests.helpers.families import family_net, images, shake, three_vits
from tests.helpers.gradients import assert_gradients_equal, elementary, farthest, gradients, stored

TOLERANCE = 1e-10
"""Of float64: sums of a few hundred terms, divided by the deviation of a few values, lose up to five digits."""
GRIDS = ((3, 4), (5, 1), (1, 5), (1, 1))
LAYOUTS = ('NCHW', 'NHWC', 'NLC')


def values(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def features(boundary, count=3):
    shapes = {'NCHW': (boundary.channels, *boundary.grid), 'NHWC': (*boundary.grid, boundary.channels)}
    return values(count, *shapes.get(boundary.layout, (boundary.tokens, boundary.channels)))


def as_tokens(x, layout):
    return (
        x if layout == 'NLC' else rearrange(x, 'n c h w -> n (h w) c' if layout == 'NCHW' else 'n h w c -> n (h w) c')
    )


def from_tokens(x, layout, grid):
    if layout == 'NLC':
        return x
    pattern = 'n (h w) c -> n c h w' if layout == 'NCHW' else 'n (h w) c -> n h w c'
    return rearrange(x, pattern, h=grid[0]).contiguous()


class TokenMap(nn.Module):
    """A stitch layer as a formula: every layout becomes tokens, which one matrix maps."""

    def __init__(self, layer):
        super().__init__()
        self.front, self.end, self.weight, self.bias = layer.front, layer.end, layer.weight, layer.bias
        self.down, self.up = layer.down, layer.up

    def forward(self, x):
        weight = self.weight if self.down is None else self.weight + self.up @ self.down / len(self.down)
        y = torch.einsum('nlc,dc->nld', as_tokens(x, self.front.layout), weight) + self.bias
        return from_tokens(y, self.end.layout, self.end.grid)


def joined():
    for grid in GRIDS:
        for front in LAYOUTS:
            for end in LAYOUTS:
                yield Boundary(4, grid, front), Boundary(6, grid, end)
        yield Boundary(4, grid, 'NLC', 2), Boundary(6, grid, 'NLC', 2)


@pytest.mark.parametrize('rank', [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize('boundaries', [*joined()], ids=str)
def test_a_stitch_layer_has_the_gradient_of_a_matrix(boundaries, rank):
    layer = StitchLayer(*boundaries).double()
    if rank:
        layer.start_update(rank)
    shake(layer, 1)
    assert_gradients_equal(layer, TokenMap(copy.deepcopy(layer)), features(boundaries[0]), TOLERANCE)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('boundaries', [*joined()], ids=str)
def test_a_norm_before_a_stitch_layer_gets_the_right_gradient(boundaries, training):
    """What a stitch layer hands back to an anchor that ends with a BatchNorm is stored as torch's BatchNorm expects."""
    if boundaries[0].layout == 'NCHW':
        model = nn.Sequential(nn.BatchNorm2d(4), StitchLayer(*boundaries)).double()
        shake(model, 1).train(training)
        assert_gradients_equal(model, elementary(model), features(boundaries[0]), TOLERANCE, inputs=False)


def joins():
    for kind in ('published', 'plain'):
        for front in LAYOUTS:
            for end in LAYOUTS:
                for given, wanted in (((3, 4), (3, 4)), ((5, 1), (5, 1)), ((1, 5), (1, 5)), ((4, 6), (2, 3)),
                                      ((2, 3), (4, 6)), ((4, 1), (2, 1)), ((1, 2), (1, 4))):  # fmt: skip
                    yield kind, Boundary(4, given, front), Boundary(6, wanted, end)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(('kind', 'front', 'end'), [*joins()], ids=str)
def test_every_seam_has_the_gradient_of_its_equation(kind, front, end, training):
    join = shake(JoinLayer(front, boundary_behind_join(front, end, resample=True), kind).double(), 1).train(training)
    assert_gradients_equal(join, elementary(join), features(front), TOLERANCE, inputs=False)


@pytest.mark.parametrize('prefixes', [(2, 2), (2, 0)])
def test_prefix_tokens_keep_or_lose_their_gradient(prefixes):
    front, end = Boundary(4, (4, 6), 'NLC', prefixes[0]), Boundary(4, (2, 3), 'NLC', prefixes[1])
    x = features(front).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: relayout(x, front, replace(end)), x, fast_mode=True)
    shape = relayout(x, front, end).shape
    grad = values(*shape, seed=1)
    wanted = torch.autograd.grad(relayout(x, front, end), x, grad)[0]
    for _, given in stored(grad):
        assert torch.equal(torch.autograd.grad(relayout(x, front, end), x, given)[0], wanted)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('size', [(16, 24), (16, 4), (4, 16)])
def test_a_new_stem_has_the_gradient_of_its_equation(size, training):
    wanted = Boundary(4, (size[0] // 4, size[1] // 4), 'NLC')
    stem = shake(NewStem(wanted, (3, *size), resample=True).double(), 1).train(training)
    assert_gradients_equal(stem, elementary(stem), values(2, 3, *size), TOLERANCE, inputs=False)


@pytest.mark.quick('0.4-False-shape1', '1.0-True-shape0', '1.0-True-shape1', '0.0-True-shape0')
@pytest.mark.parametrize('shape', [(4, 3, 2), (4, 3, 2, 2), (4, 3, 2, 1)])
@pytest.mark.parametrize(('rate', 'scale'), [(0.0, True), (0.4, True), (0.4, False), (1.0, True)])
def test_drop_path_has_the_gradient_of_timms(shape, rate, scale):
    ours, timms = TensorDropPath(rate, scale), DropPath(rate, scale)

    def seeded(path):
        def run(x):
            torch.manual_seed(0)
            return path(x)

        return run

    with torch.random.fork_rng(devices=[]):
        for training in (False, True):
            wanted = gradients(seeded(timms.train(training)), timms, values(*shape), values(*shape, seed=1))
            for _, x in stored(values(*shape)):
                for _, grad in stored(values(*shape, seed=1)):
                    assert farthest(gradients(seeded(ours.train(training)), ours, x, grad), wanted) == 0


@pytest.mark.parametrize(
    'question', [Question(), Question('soft', tau=2.0), Question('soft', topk=2, tau=2.0)], ids=str
)
def test_distillation_has_the_gradient_of_its_equation(question):
    logits, targets = values(5, 4, dtype=torch.float32), torch.arange(5) % 4
    answer = question.answer(values(5, 4, seed=1, dtype=torch.float32))
    criterion = DistillationLoss(nn.CrossEntropyLoss(), 0.3, question.tau)

    def equation(z):
        loss = 0.7 * F.cross_entropy(z, targets)
        if question.kind == 'hard':
            return loss + 0.3 * F.cross_entropy(z, answer.classes[:, 0])
        own, wanted = (z / question.tau).softmax(1), answer.shares.double().softmax(1)
        if question.topk:
            kept = own.gather(1, answer.classes)
            own = torch.cat([kept, 1 - kept.sum(1, keepdim=True)], 1)
        distance = (wanted * (wanted.log() - own.log())).sum(1).mean()
        return loss + 0.3 * question.tau**2 * distance

    z = logits.double().requires_grad_()
    (wanted,) = torch.autograd.grad(equation(z), z)
    for _, given in stored(logits):
        x = given.detach().requires_grad_()
        (found,) = torch.autograd.grad(criterion(x, targets, answer), x)
        assert (found - wanted).abs().max() <= 32 * torch.finfo(torch.float32).eps * wanted.abs().max()


def test_the_teachers_of_anchors_have_the_gradient_of_a_divergence():
    net, x = three_vits().double(), images(32, 4).double()
    teachers = AnchorTeachers(net, 0.25)
    with torch.no_grad():
        answer = net(x, stitch=1).softmax(1)
    logits = values(*answer.shape).requires_grad_()
    own = logits.softmax(1)
    equation = 0.75 * logits.square().sum() + 0.25 * (answer * (answer.log() - own.log())).sum(1).mean()
    (wanted,) = torch.autograd.grad(equation, logits)
    for _, given in stored(logits.detach()):
        z = given.requires_grad_()
        (found,) = torch.autograd.grad(teachers(1, x, z, z.square().sum()), z)
        assert (found - wanted).abs().max() <= 1e-13 * wanted.abs().max()


@pytest.mark.parametrize('several_labels', [False, True])
def test_a_divergence_has_the_gradient_of_its_equation(several_labels):
    """Of one distribution over the classes, and of one for each class: yes or no."""
    q_of, wanted = values(4, 3, seed=2).requires_grad_(), values(4, 3, seed=3)
    if several_labels:
        p, q = 1 / (1 + (-wanted).exp()), 1 / (1 + (-q_of).exp())
        parts = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    else:
        p, q = (z.exp() / z.exp().sum(1, keepdim=True) for z in (wanted, q_of))
        parts = p * (p / q).log()
    weights = values(4, 1, seed=4)
    (equation,) = torch.autograd.grad((weights * parts).sum(), q_of)
    for _, given in stored(q_of.detach()):
        for _, answers in stored(wanted):
            z = given.requires_grad_()
            apart = divergence(z, answers, several_labels)
            torch.testing.assert_close(apart, parts.detach(), rtol=TOLERANCE, atol=1e-14)
            (found,) = torch.autograd.grad((weights * apart).sum(), z)
            torch.testing.assert_close(found, equation, rtol=TOLERANCE, atol=1e-14)


@pytest.mark.parametrize('several_labels', [False, True])
def test_a_divergence_of_sure_answers_has_the_difference_of_probabilities_as_its_gradient(several_labels):
    """Where the equation itself fails: log 0 for logits beyond 104 in float32."""
    sure = torch.tensor([-1e4, -104.0, -30.0, 0.0, 30.0, 104.0, 1e4])
    found, wanted = torch.cartesian_prod(sure, sure).T  # every pair
    shape = (-1, 1) if several_labels else (-1, len(sure))
    z, answers = found.reshape(shape).requires_grad_(), wanted.reshape(shape)
    (gradient,) = torch.autograd.grad(divergence(z, answers, several_labels).sum(), z)
    p, q = (x.detach().double() for x in (answers, z))
    p, q = (p.sigmoid(), q.sigmoid()) if several_labels else (p.softmax(1), q.softmax(1))
    assert (gradient - (q - p)).abs().max() <= 8 * torch.finfo(torch.float32).eps  # of probabilities, at most 1


@pytest.mark.quick('resnet-True')
@pytest.mark.parametrize(
    ('name', 'training'),
    [('vit', True), ('swin', False), ('resnet', False), ('resnet', True), ('levit', True)],
)
def test_checkpointed_blocks_have_the_gradients_of_plain_ones(name, training):
    net = family_net(name).double().train(training)
    size = net.input_size[-1]
    x, grad = images(size, 3).double(), values(3, net.num_classes)

    def found(stitch):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return gradients(lambda x: net(x, stitch=stitch), net, x, grad)

    stitches = range(0, len(net.stitches), 3)
    wanted = {i: found(i) for i in stitches}
    for i in range(len(net.anchors)):
        net.anchor(i).checkpointing = True
    for i in stitches:
        assert farthest(found(i), wanted[i]) == 0
