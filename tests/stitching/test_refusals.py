"""Anchors that cannot be stitched are refused with a sentence that says which and why."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import timm
import torch

from snnet import CannotStitch, SnnetError, as_anchor, create_stitchable_net, initialize
from snnet.calibration.image_chunks import image_chunks
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


def test_networks_without_numbers_are_refused():
    with torch.device('meta'):
        empty = timm.create_model('test_vit', num_classes=3, img_size=32)
    with pytest.raises(SnnetError, match=r"test_vit holds no numbers: cls_token is on torch's meta device"):
        create_stitchable_net([as_anchor(empty)], pretrained=False)


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


@pytest.mark.slow  # seconds
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


@pytest.mark.parametrize(
    ('anchors', 'options', 'said'),
    [
        (None, {}, 'an anchor is a name or made by snnet.as_anchor, but None'),
        ([3], {}, 'but 3 was given'),
        ([vit()], {}, 'make one of this VisionTransformer'),
        ('TEST_VIT', {}, 'did you mean test_vit'),
        ('test_vit=', {}, "'test_vit=' is not NAME=FILE"),
        ('test_vit.', {}, "test_vit has no weights tagged '', only r160_in1k"),
        ('=w.pth', {}, "'=w.pth' is not NAME=FILE"),
        ('test_vit', {'num_classes': 10.0}, 'num_classes is an integer, but 10.0'),
        ('test_vit', {'num_classes': True}, 'num_classes is an integer, but True'),
        ('test_vit', {'img_size': (64, 64)}, r'img_size is an integer of at least 1, but \(64, 64\)'),
        ('test_vit', {'img_size': 0}, 'img_size is at least 1, but 0'),
        ('test_vit', {'window': '2'}, "window is an integer of at least 1, but '2'"),
        ('test_vit', {'nearest': 'no'}, "nearest is True or False, not 'no'"),
        ('test_vit', {'drop_path_rate': float('nan')}, 'drop_path_rate is a share .* not nan'),
        ('test_vit', {'drop_path_rate': 1}, 'drop_path_rate is a share .* not 1'),
    ],
)
def test_arguments_of_another_kind_are_refused_in_a_sentence(anchors, options, said):
    with pytest.raises(SnnetError, match=said):
        create_stitchable_net(anchors, pretrained=False, **options)


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'num_classes': 7}, 'was built with 10 classes, which num_classes=7 cannot change: give its model'),
        ({'img_size': 64}, r'built for images of 32x32, .* as_anchor takes input_size=\(3, 64, 64\)'),
    ],
)
def test_options_that_cannot_change_an_anchor_that_is_built_are_refused(options, said):
    built = as_anchor(timm.create_model('test_vit', num_classes=10, img_size=32))
    with pytest.raises(SnnetError, match=said):
        create_stitchable_net([built], pretrained=False, **options)


@pytest.mark.slow  # a second
def test_anchors_of_other_types_and_compiled_networks_are_refused():
    half, compiled = vit().half(), torch.compile(vit())
    with pytest.raises(CannotStitch, match='differ in type of their weights: a float16, b float32; give their mod'):
        create_stitchable_net(
            [as_anchor(half, 'a', input_size=(3, 32, 32)), as_anchor(vit(), 'b', input_size=(3, 32, 32))],
            pretrained=False,
        )
    with pytest.raises(SnnetError, match='takes a network before torch.compile, which keeps it as _orig_mod'):
        as_anchor(compiled, input_size=(3, 32, 32))


def test_a_net_that_is_of_embeddings_unasked_says_so(caplog):
    built = as_anchor(timm.create_model('test_vit', num_classes=0, img_size=32))
    create_stitchable_net([built], pretrained=False, num_classes=0)
    assert not caplog.records
    create_stitchable_net([built], pretrained=False)
    assert 'test_vit: no classifier among the weights, so this is a net of embeddings (num_classes=' in caplog.text


def test_integers_of_numpy_and_paths_are_taken(tmp_path):
    options = {
        'num_classes': np.int64(3),
        'img_size': np.int32(32),
        'window': np.int64(2),
        'drop_path_rate': np.float32(0),
    }
    create_stitchable_net('test_vit', pretrained=False, **options).save_pretrained(tmp_path / 'net')
    net = create_stitchable_net(tmp_path / 'net', pretrained=False)
    assert (net.num_classes, net.input_size) == (3, (3, 32, 32))
    assert [fit.layer for fit in initialize(net, [torch.zeros(2, 3, 32, 32)], samples=np.int64(2))] == []


@pytest.mark.parametrize(
    ('batches', 'said'),
    [
        (torch.zeros(2, 3, 32, 32), 'a list or loader of image batches .* not a Tensor'),
        (None, 'not a NoneType'),
        ([torch.zeros(3, 32, 32)], r'not \(3, 32, 32\) of float32'),
        ([torch.zeros(2, 3, 32, 32, dtype=torch.uint8)], r'not \(2, 3, 32, 32\) of uint8'),
        ([{'image': torch.zeros(2, 3, 32, 32)}], 'not a dict'),
        ([np.zeros((2, 3, 32, 32))], 'not a ndarray'),
        ([torch.zeros(2, 1, 32, 32)], 'takes images of 3 channels, not 1'),
    ],
)
def test_what_is_no_batch_of_images_is_refused_in_a_sentence(batches, said):
    with pytest.raises(SnnetError, match=said):
        list(image_chunks(batches, 2, 1, 3))


@pytest.mark.parametrize('size', [64, (64, 64), (3, 0, 0), '3,4', (3, 8.0, 8)])
def test_an_input_size_of_another_form_is_refused(size):
    with pytest.raises(SnnetError, match=r'input_size is \(channels, height, width\)'):
        as_anchor(vit(), input_size=size)
