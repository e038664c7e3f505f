"""Nets of anchors without classes: embeddings of one width from every stitch."""

from __future__ import annotations

import pytest
import torch

import snnet
from snnet.data.datasets import DataSettings, open_dataset
from tests.helpers.families import family_net, images, shared_net
from tests.helpers.rounding import rounding


def a_net(**options):
    """A net of embeddings of 16 and 24 numbers."""
    net = family_net('vit', **options)
    net.reset_classifier(0)
    return net


@pytest.mark.slow  # seconds
def test_every_stitch_gives_the_width_of_the_largest_once_the_others_are_fitted(tmp_path):
    net, x = a_net(), images(32, 64)
    assert net(x[:2], stitch=0).shape == (2, 16)
    with pytest.raises(snnet.SnnetError, match=r'of small have another width .* snnet\.fit_embeddings\(net, batches\)'):
        net.embed(x[:2], stitch=0)
    (fit,) = snnet.fit_embeddings(net, [x], samples=64, ridge=0)
    assert (fit.layer, fit.rows, fit.channels) == (0, 64, 16)
    found = [net.embed(x, stitch=stitch) for stitch in range(len(net.stitches))]
    assert {embedding.shape for embedding in found} == {(64, 24)}
    net.save_pretrained(tmp_path)
    again = snnet.StitchableNet.from_pretrained(tmp_path)
    assert again.num_classes == 0
    assert torch.equal(again.embed(x, stitch=0), found[0])


def test_the_fit_is_the_least_squares_solution():
    net, x = a_net(), images(32, 64)
    (fit,) = snnet.fit_embeddings(net, [x[:40], x[40:]], samples=64, ridge=0)
    with torch.no_grad():
        front, end = (net(x, stitch=i).double() for i in (0, 1))
    with_one = torch.cat([front, torch.ones(64, 1, dtype=torch.float64)], 1)
    best = with_one @ (torch.linalg.pinv(with_one, rtol=1e-6) @ end)  # a norm leaves one direction to rounding
    ours = net.embed(x, stitch=0).double()
    assert float((ours - best).abs().max()) < 1e3 * rounding(torch.float32, 64) * float(end.abs().max())
    centered = end - end.mean(0)
    assert fit.residual == pytest.approx(float((best - end).square().sum() / centered.square().sum()), rel=1e-6)


def test_anchors_by_name_may_come_without_classes():
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=0, img_size=32)
    assert net.num_classes == 0
    assert not net.projections or net.records[0].flops < net.records[1].flops
    assert net.embed([torch.zeros(3, 32, 32)], stitch=1).shape == (1, net.head_hidden_size)


def test_a_net_of_embeddings_is_refused_where_classes_are_asked_for(tmp_path):
    net = a_net()
    with pytest.raises(snnet.SnnetError, match=r'has no classes: it is a net of embeddings, which net\.embed'):
        net.predict(images(32))
    (tmp_path / 'a').mkdir()
    with pytest.raises(snnet.SnnetError, match='it is a net of embeddings: --num-classes gives it classifiers'):
        open_dataset(DataSettings(data_dir=str(tmp_path)), 'train', net)


def test_a_net_with_classes_gives_no_embeddings_until_they_are_taken_away():
    net = shared_net('vit')
    with pytest.raises(snnet.SnnetError, match=r'has 7 classes: net\.reset_classifier\(0\)'):
        net.embed(images(32))
    with pytest.raises(snnet.SnnetError, match='has 7 classes, so it gives no embeddings'):
        snnet.fit_embeddings(net, [images(32)])


def test_networks_without_pooling_and_fits_without_images_are_refused():
    net = family_net('vit')
    with pytest.raises(snnet.SnnetError, match=r'small gives features of shape \(17, 16\) for an image'):
        net.reset_classifier(0, '')
    with pytest.raises(snnet.SnnetError, match='no images to fit the embeddings with'):
        snnet.fit_embeddings(a_net(), [])
