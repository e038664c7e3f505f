from __future__ import annotations

import copy
from itertools import product

import pytest
import timm
import torch
from timm.layers import Conv2dSame, StdConv2d
from timm.models.levit import Levit
from timm.utils import reparameterize_model
from torch import nn

from snnet.errors import SnnetError
from snnet.reparam import (
    CONVOLUTION,
    DBB,
    expand,
    expect_biases,
    fold,
    folded,
    structure_of,
)
from snnet.reparam.convolution_branches import PointwiseThenKernel
from snnet.reparam.kernel_window import KernelWindow
from tests.helpers.families import shake
from tests.helpers.rounding import rounding


def conv_of(kernel, channels=(8, 8), seed=0, kind=nn.Conv2d, dtype=torch.float64, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(*channels, kernel, **options).to(dtype)


def maps(channels=8, size=(13, 17), count=3, dtype=torch.float64):
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(3), dtype=dtype)


def distance(a, b):
    return float(((a - b).abs().max() / b.abs().max()).detach())


def trained(network):
    """Branches that are far from where they began."""
    return shake(network, 1).eval()


GEOMETRIES = {
    'stride': {'stride': 2, 'padding': 1},
    'stride longer than the kernel': {'stride': (4, 5), 'padding': 1},
    'no padding': {'padding': 'valid'},
    'same': {'padding': 'same'},
    'much padding': {'padding': (3, 4)},
    'dilation': {'dilation': 2, 'padding': (1, 3)},
    'groups': {'groups': 2, 'padding': 1},
    'depthwise': {'groups': 8, 'padding': 1, 'stride': 2},
    'reflected': {'padding': 1, 'padding_mode': 'reflect'},
    'circular and dilated': {'padding': 'same', 'padding_mode': 'circular', 'dilation': (2, 1)},
    'replicated, in groups': {'padding': (2, 1), 'padding_mode': 'replicate', 'groups': 4, 'stride': 2},
    'no bias': {'padding': 1, 'bias': False},
}


@pytest.mark.parametrize(('kind', 'k', 'stride', 'groups'), [*product(CONVOLUTION, (1, 2, 3, 5, 7), (1, 2), (1, 4))])
def test_every_branch_alone_folds_exactly(kind, k, stride, groups):
    conv = conv_of(k, padding=k // 2, stride=stride, groups=groups)
    expand(conv, (kind,))
    before = trained(conv)(maps())
    assert distance(fold(conv)(maps()), before) <= 1e-14
    assert type(conv) is nn.Conv2d


@pytest.mark.parametrize('kernel', [3, (3, 2), (1, 7), 4])
@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_all_branches_together_keep_the_function_and_fold_exactly(geometry, kernel):
    conv, x = conv_of(kernel, **GEOMETRIES[geometry]), maps()
    plain = conv(x)
    expand(conv, images=x).eval()
    assert distance(conv(x), plain) <= 1e-14
    before = trained(conv)(x)
    assert distance(before, plain) > 0.1
    assert distance(fold(conv)(x), before) <= 1e-14


@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('size', [(13, 17), (12, 9)])
def test_padding_that_follows_the_input_is_followed(stride, size):
    conv, x = conv_of(3, kind=Conv2dSame, stride=stride), maps(size=size)
    plain = conv(x)
    expand(conv, images=x).eval()
    assert distance(conv(x), plain) <= 1e-14
    before = trained(conv)(x)
    assert distance(fold(conv)(x), before) <= 1e-14
    assert type(conv) is Conv2dSame


def test_in_float32_branches_and_folding_differ_by_rounding_alone():
    x = maps(64, (9, 9), dtype=torch.float32)
    conv = conv_of(3, (64, 32), padding=1, dtype=torch.float32)
    plain = conv(x)
    expand(conv, images=x).eval()
    bound = rounding(torch.float32, terms=64 * 3 * 3)
    assert distance(conv(x), plain) <= bound
    before = trained(conv)(x)
    assert distance(fold(conv)(x), before) <= bound


@torch.no_grad()
def test_the_padding_between_is_the_inner_norms_image_of_zero_in_train_mode():
    branch = PointwiseThenKernel(KernelWindow((4, 5), (3, 3), padding=(1, 1, 1, 1))).double()
    branch.draw(torch.Generator().manual_seed(0))
    trained(branch)
    x = maps(4)
    inner = nn.functional.conv2d(x, branch.first)
    for norm, value in (('running_mean', inner.mean((0, 2, 3))), ('running_var', inner.var((0, 2, 3), correction=0))):
        branch.inner.get_buffer(norm).copy_(value)
    still = branch.features(x)
    branch.inner.train()
    assert distance(branch.features(x), still) <= 1e-14


def test_timms_protocol_finds_the_blocks_of_a_copy():
    model = trained(expand(timm.create_model('resnet18', num_classes=5, channels=(8, 8, 8, 8))).double())
    plain = timm.create_model('resnet18', num_classes=5, channels=(8, 8, 8, 8))
    x = maps(3, (32, 32))
    before, grown = model(x), structure_of(model)
    deployed = reparameterize_model(model)
    assert distance(deployed(x), before) <= 1e-13
    assert structure_of(model) == grown
    assert structure_of(deployed) == {}
    assert deployed.state_dict().keys() - plain.state_dict().keys() == {f'{name}.bias' for name in grown}
    assert {type(m) for m in deployed.modules()} == {type(m) for m in plain.modules()}


@pytest.mark.quick('mobilenetv3_small_050')
@pytest.mark.parametrize('name', ['resnet18', 'regnety_002', 'mobilenetv3_small_050', 'convnext_atto'])
def test_a_folded_network_loads_into_the_plain_one(name):
    model = trained(expand(timm.create_model(name, num_classes=5), ('1x1', '1x1_avg', 'identity')).double())
    x = maps(3, (32, 32), 2)
    before = model(x)
    plain = timm.create_model(name, num_classes=5).double().eval()
    plain.load_state_dict(folded(model, x[:1]).state_dict())
    assert distance(plain(x), before) <= 1e-12
    assert structure_of(model)


class Forked(nn.Module):
    """A convolution whose output goes to a BatchNorm and, if told so, past it."""

    def __init__(self, past: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.past = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), past

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y if self.past else self.norm(y)


@pytest.mark.parametrize('past', [False, True])
def test_a_norm_absorbs_the_bias_only_if_nothing_else_takes_it(past):
    x = maps(4)
    model = trained(expand(Forked(past)).double())
    before = model(x)
    fold(model, x)
    assert distance(model(x), before) <= 1e-14
    assert (model.conv.bias is not None) == past
    again = Forked(past).double().eval()
    expect_biases(again, model.state_dict())
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))


def test_a_module_that_does_more_than_a_convolution_is_refused_by_name():
    network = nn.Sequential(StdConv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    with pytest.raises(SnnetError, match='0 can have no branches: a StdConv2d'):
        expand(network, where=['0'])
    assert structure_of(expand(network, ('1x1',))) == {'1': ['1x1']}


@pytest.mark.parametrize(
    ('network', 'options', 'said'),
    [
        (
            nn.Conv2d(4, 4, 3),
            {'kinds': 'identity'},
            r"kinds is a list of branches, such as \['1x1'\], .* not 'identity'",
        ),
        (nn.Conv2d(4, 4, 3), {'kinds': []}, r'or None for all, not \[\]'),
        (nn.Conv2d(4, 4, 3), {'images': torch.full((2, 4, 5, 5), torch.nan)}, 'images .* values that are not finite'),
        (nn.Linear(4, 4), {}, r'nothing to grow in this Linear: it has no convolution \(Conv2d\) or stitch layer'),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(network, options, said):
    with pytest.raises(SnnetError, match=said):
        expand(network, **options)


def test_computed_and_shared_weights_are_refused():
    computed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    first, second = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    second.weight = first.weight
    for network in (nn.Sequential(computed), nn.Sequential(first, second)):
        with pytest.raises(SnnetError, match='nothing to grow'):
            expand(network)


def test_what_folds_itself_is_left_alone(caplog):
    network = Levit(img_size=64, embed_dim=(16, 24, 32), key_dim=8, depth=(1, 1, 1), num_heads=(1, 1, 1))
    with pytest.raises(SnnetError, match='ConvNorm folds it in its own way'):
        expand(network)


def test_a_branch_that_does_not_fit_is_left_out_and_named(caplog):
    expand(nn.Sequential(nn.Conv2d(4, 4, 3, stride=2)), ('1x1', 'identity'))
    assert '0 gets no branch identity' in caplog.text
    with pytest.raises(SnnetError, match="no branch '3x3'.*1x1_kxk"):
        expand(nn.Conv2d(4, 4, 3), ('3x3',))


def test_hooks_names_and_objects_survive():
    conv = conv_of(3, padding=1)
    seen, weight, bias = [], conv.weight, conv.bias
    conv.register_forward_hook(lambda *_: seen.append(1))
    expand(conv)
    copy.deepcopy(conv)(maps())
    fold(conv)(maps())
    assert conv.weight is weight
    assert conv.bias is bias
    assert len(seen) == 2


def vgg16():
    """As the tables have it: thirteen convolutions with BatchNorm, and two linear layers."""
    layers, width = [], 3
    for wide in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(width, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()] if wide else [nn.MaxPool2d(2)]
        width = wide or width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


@pytest.mark.quick('vgg16-32-None-15.0-0.313')
@pytest.mark.parametrize(
    ('make', 'size', 'kinds', 'params', 'flops'),
    [
        (lambda: timm.create_model('resnet50'), 224, None, '25.6', '4.09'),
        (lambda: timm.create_model('resnet50'), 224, DBB, '40.7', '6.79'),
        (lambda: timm.create_model('resnet50'), 224, tuple(CONVOLUTION), '48.3', '8.02'),
        (vgg16, 32, None, '15.0', '0.313'),
    ],
)
def test_the_published_counts(make, size, kinds, params, flops):
    from snnet.reparam.flops_meter import FlopsMeter

    with torch.device('meta'):
        network = make()
        plain = {name: p.shape for name, p in network.named_parameters()}
        if kinds is not None:
            expand(network, kinds, init='static')
        meter = FlopsMeter(network)
        network(torch.zeros(2, 3, size, size))
    assert f'{sum(p.numel() for p in network.parameters()) / 1e6:.1f}' == params
    assert f'{meter.total() / 1e9:.{len(flops) - 2}f}' == flops
    after = {name: p.shape for name, p in fold(network).named_parameters()}
    assert {name: after[name] for name in plain} == plain
    assert all(name.endswith('.bias') for name in after.keys() - plain.keys())
