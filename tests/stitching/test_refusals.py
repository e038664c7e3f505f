"""Anchors that cannot be stitched are refused with a sentence that says which and why."""

from __future__ import annotations

from functools import partial

import pytest

from snnet import CannotStitch, SnnetError, as_anchor, create_stitchable_net
from tests.helpers.families import convnext, resnet, vit


def refused(*makers, sizes=(32, 32)):
    anchors = [
        as_anchor(make(), name, input_size=(3, size, size)) for (name, make), size in zip(makers, sizes, strict=True)
    ]
    with pytest.raises(CannotStitch) as caught:
        create_stitchable_net(anchors, pretrained=False)
    message = str(caught.value)
    assert '\n' not in message
    assert all(name in message for name, _ in makers)
    return message


def test_different_class_counts_are_refused():
    message = refused(('few', vit), ('many', partial(vit, num_classes=9)))
    assert 'number of classes' in message
    assert 'few 7' in message
    assert 'many 9' in message


def test_different_image_sizes_are_refused():
    message = refused(('low', vit), ('high', partial(vit, img_size=64)), sizes=(32, 64))
    assert 'image size' in message
    assert '3x32x32' in message
    assert '3x64x64' in message


@pytest.mark.parametrize(
    ('other', 'size', 'told'),
    [
        (partial(vit, class_token=False, global_pool='avg'), 32, '4x4 + 1 prefix'),
        (partial(vit, patch_size=16), 32, '2x2'),
        (partial(resnet, 'resnet18', (2, 2, 2, 2)), 32, '2x2'),
    ],
)
def test_no_common_grid_or_prefix_is_refused_telling_both(other, size, told):
    message = refused(('token', partial(vit, 24)), ('other', other), sizes=(size, size))
    assert 'grid' in message
    assert '4x4 + 1 prefix' in message
    assert told in message


def test_common_grids_too_shallow_for_the_rule_are_refused():
    message = refused(
        ('one', partial(convnext, 'convnext_atto', (1, 1, 1, 1))),
        ('two', partial(convnext, 'convnext_atto', (1, 1, 1, 1), 16)),
        sizes=(64, 64),
    )
    assert 'too shallow' in message


@pytest.mark.parametrize('given_anchors', ['', []])
def test_no_anchors_are_refused(given_anchors):
    with pytest.raises(SnnetError, match='at least one anchor'):
        create_stitchable_net(given_anchors, pretrained=False)


def test_two_anchors_of_one_name_are_refused():
    with pytest.raises(SnnetError, match="two anchors are called 'test_vit'"):
        create_stitchable_net('test_vit,test_vit', pretrained=False)
