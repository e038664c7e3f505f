"""Kinds of families that need more than equal sizes and widths."""

from __future__ import annotations

import itertools
import logging

import pytest
import timm
import torch
from torch import nn

from snnet import CannotStitch, as_anchor, create_stitchable_net
from tests.helpers.families import shake


class Unit(nn.Module):
    def __init__(self, given, width):
        super().__init__()
        self.conv = nn.Conv2d(given, width, 3, padding=1)
        self.skip = nn.Identity() if given == width else nn.Conv2d(given, width, 1)

    def forward(self, x):
        return self.skip(x) + self.conv(x).relu()


class Widening(nn.Module):
    """One stage of blocks that differ in width, as EfficientNet has them, and a last stage."""

    def __init__(self, *widths):
        super().__init__()
        self.num_classes = 5
        self.stem = nn.Conv2d(3, widths[0], 4, 4)
        self.blocks = nn.Sequential(*(Unit(a, b) for a, b in itertools.pairwise(widths)))
        self.down = nn.Conv2d(widths[-1], 8, 2, 2)
        self.last = nn.Sequential(Unit(8, 8), Unit(8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.last(self.down(self.blocks(self.stem(x)))).mean((2, 3)))


@pytest.mark.slow  # seconds
def test_blocks_of_one_stage_may_differ_in_width(tmp_path):
    networks = {'small': Widening(4, 4, 4, 6, 6), 'large': Widening(6, 6, 6, 6, 9, 9, 9)}
    anchors = [as_anchor(shake(m), name, input_size=(3, 32, 32)) for name, m in networks.items()]
    assert next(len(span) for span in anchors[0].blocks()) == 4, 'one stage on one grid'
    net = create_stitchable_net(anchors, pretrained=False).eval()
    shapes = [tuple(layer.weight.shape) for layer in net.stitch_layers]
    assert len(set(shapes)) > 1
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for stitch in range(len(net.stitches)):
            assert net(x, stitch=stitch).shape == (2, 5)
    used = {layer for stitch in net.stitches for layer in stitch.layers}
    assert used == set(range(len(net.stitch_layers)))


def test_networks_of_different_image_sizes_are_built_for_the_largest(caplog):
    with caplog.at_level(logging.WARNING, 'snnet'):
        net = create_stitchable_net('resnet10t,resnet18', pretrained=False, num_classes=3)
    assert net.input_size == (3, 224, 224)
    assert 'resnet10t at 176, resnet18 at 224' in caplog.text


def test_an_image_size_that_was_asked_for_is_kept():
    net = create_stitchable_net('test_vit,test_vit2', pretrained=False, img_size=64)
    assert net.input_size == (3, 64, 64)


def test_networks_some_of_which_have_no_classifier_are_refused_with_the_remedy():
    anchors = [as_anchor(timm.create_model(n, num_classes=c), n) for n, c in (('test_vit', 0), ('test_vit2', 3))]
    with pytest.raises(CannotStitch, match=r'test_vit has no classifier .*num_classes=.*num_classes=0 for a net'):
        create_stitchable_net(anchors, pretrained=False)


def test_classifiers_of_different_widths_are_refused_with_the_remedy():
    anchors = [as_anchor(timm.create_model(n, num_classes=c), n) for n, c in (('test_vit', 3), ('test_vit2', 4))]
    with pytest.raises(CannotStitch, match=r'number of classes: .*num_classes='):
        create_stitchable_net(anchors, pretrained=False)


@pytest.mark.quick('names0')
@pytest.mark.parametrize('names', [('test_vit', 'test_vit2'), ('resnet18', 'resnet34')])
def test_networks_of_one_channel_make_a_net_of_one_channel(names, tmp_path):
    args = {'in_chans': 1, 'num_classes': 3}
    net = create_stitchable_net([as_anchor(timm.create_model(n, **args)) for n in names], pretrained=False).eval()
    assert net.input_size[0] == 1
    net.save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path)
    x = torch.randn(1, *net.input_size)
    with torch.no_grad():
        assert torch.equal(again(x, stitch=2), net(x, stitch=2))


def test_built_anchors_of_different_sizes_are_refused_with_the_remedy():
    anchors = [as_anchor(timm.create_model('test_vit', img_size=size), f'at {size}') for size in (64, 96)]
    with pytest.raises(CannotStitch, match=r'image size: at 64 3x64x64, at 96 3x96x96; .*input_size='):
        create_stitchable_net(anchors, pretrained=False)
