"""Classes of images, whatever form an image has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

import snnet
from snnet.net.preprocessing import preprocessing
from tests.helpers.families import CLASSES, family_net, shared_net


@pytest.fixture(scope='module')
def net():
    return shared_net('vit')


@pytest.fixture(scope='module')
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def test_labels_are_those_of_the_largest_logits_and_chances_are_their_softmax(net, pixels):
    x = create_transform(is_training=False, **preprocessing(net))(Image.fromarray(pixels))[None]
    chances = net(x, stitch=3).softmax(1)[0]
    (found,) = net.predict(Image.fromarray(pixels), stitch=3, topk=3)
    order = chances.argsort(descending=True)[:3].tolist()
    assert found.indices == tuple(order)
    assert found.labels == tuple(map(str, order))  # the net has no names
    assert found.probabilities == tuple(chances[order].tolist())


def test_with_several_labels_the_chances_are_sigmoids_in_the_order_of_the_logits():
    net = family_net('vit')
    net.several_labels = True
    x = torch.randn(3, 32, 32)
    (found,) = net.predict(x, stitch=3, topk=CLASSES)
    logits = net(x[None], stitch=3)[0]
    assert found.indices == tuple(logits.argsort(descending=True).tolist())
    assert found.probabilities == tuple(logits[list(found.indices)].sigmoid().tolist())
    assert sum(found.probabilities) > 1.5


def test_every_form_of_an_image_gives_the_same_answer(net, pixels, tmp_path):
    file = tmp_path / 'image.png'
    Image.fromarray(pixels).save(file)
    x = create_transform(is_training=False, **preprocessing(net))(Image.fromarray(pixels))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    forms = [file, str(file), Image.fromarray(pixels), pixels, tensor, x]
    found = net.predict(forms, topk=99, batch_size=4)
    assert len(found[0].labels) == CLASSES
    for other in found[1:]:
        assert other.indices == found[0].indices
        assert other.probabilities == pytest.approx(found[0].probabilities, abs=1e-6)  # batches of two sizes
    assert net.predict(x)[0].labels == found[-1].labels[:5]
    assert len(net.predict(torch.stack([x, x]))) == len(net.predict(np.stack([pixels, pixels]))) == 2
    assert len(net.predict(pixels[:, :, 0])) == 1  # gray


def test_a_name_of_two_classes_is_said(caplog):
    net = family_net('vit')
    net.class_names = list('abcdefg')
    assert caplog.text == ''
    net.class_names = list('abcdbfg')
    assert "classes 1 and 4 are both named 'b'" in caplog.text


def test_names_and_the_active_stitch_are_used():
    net = family_net('vit')
    net.class_names = list('abcdefg')
    x = torch.randn(3, 32, 32)
    with net.using(2):
        (found,) = net.predict(x)
    assert found == net.predict(x, stitch=2)[0]
    assert found.labels == tuple('abcdefg'[i] for i in found.indices)
    assert str(found).startswith(f'{found.labels[0]} {found.probabilities[0]:.1%}, ')


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        ('missing.jpg', r"'missing\.jpg' cannot be read: No such file"),
        (np.zeros((4, 4, 3)), r'pixels are an array of type uint8 .* not \(4, 4, 3\) of type float64'),
        (np.zeros((4, 4, 7), np.uint8), r'not \(4, 4, 7\) of type uint8'),
        (torch.zeros(1, 32, 32), r'a normalized image is a tensor \(3, height, width\), not \(1, 32, 32\)'),
        ([3], 'an image is a file, a PIL image, an array or a tensor, not int'),
        ([torch.zeros(3, 32, 32), torch.zeros(3, 64, 64)], 'tensors of one batch have one size'),
        (torch.zeros(3, 64, 64), r'made for images \(3, 32, 32\), and does not run on \(3, 64, 64\): '),
        (torch.full((3, 32, 32), float('nan')), 'holds values that are not finite'),
        (np.zeros((0, 4, 3), np.uint8), 'image 0 cannot be read: it has 4 x 0 pixels'),
        (None, 'images are files, PIL images, arrays or tensors, or a list of them, not None'),
    ],
)
def test_what_is_not_an_image_is_refused(net, image, message):
    with pytest.raises(snnet.SnnetError, match=message):
        net.predict(image)


def test_unknown_stitches_and_empty_lists(net):
    with pytest.raises(snnet.UnknownStitch):
        net.predict(torch.zeros(3, 32, 32), stitch=999)
    with pytest.raises(snnet.SnnetError, match='topk is at least 1, but 0 was given'):
        net.predict([], topk=0)
    with pytest.raises(snnet.SnnetError, match='topk is an integer of at least 1, but 2.5 was given'):
        net.predict([], topk=2.5)
    assert net.predict([]) == []


def test_an_anchor_keeps_its_normalization_where_its_config_says_another():
    net = family_net('vit')
    net.anchor(0).normalization = type(net.anchor(0).normalization)((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert preprocessing(net)['mean'] == (0.1, 0.2, 0.3)
    assert preprocessing(net)['std'] == (0.4, 0.5, 0.6)
