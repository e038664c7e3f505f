"""Blends of two images: what they are made of, and that images which judge are no part of them."""

from __future__ import annotations

import pytest
import torch

import snnet
from snnet import SnnetError
from snnet.calibration import adaptation_work
from snnet.calibration.blended_images import BlendedImages
from tests.helpers.families import family_net, images

SOURCES = torch.tensor([0, 1, 2, 4])


def one_hot(count=5):
    """Images of which each has a channel of its own, so that a blend shows what it is made of."""
    return torch.eye(count)[:, :, None, None].expand(-1, -1, 2, 2).contiguous()


def test_images_come_first_and_then_blends_of_two_sources_whose_shares_are_one():
    x = one_hot()
    blended = BlendedImages(x, SOURCES, 3, seed=0)
    assert len(blended) == 5 + 3 * 4
    everything = torch.cat(list(blended.chunks(4)))
    assert torch.equal(everything[:5], x)
    shares = everything[5:, :, 0, 0]  # (blends, images)
    torch.testing.assert_close(shares.sum(1), torch.ones(12))
    assert shares.min() >= 0
    assert bool((shares[:, 3] == 0).all()), 'the image that is no source is in no blend'
    assert bool(((shares > 0).sum(1) <= 2).all())
    assert bool((shares[torch.arange(12), SOURCES.repeat(3)] > 0).all()), 'each source is in three blends of its own'
    assert len({tuple(row) for row in shares.tolist()}) > 9, 'they differ'


def test_half_of_the_blended_images_are_mirrored_and_images_alone_are_not():
    x = torch.arange(4.0).expand(6, 1, 1, 4).contiguous()  # a row that rises
    blended = BlendedImages(x, torch.arange(6), 1000, seed=0)
    rises = torch.cat(list(blended.chunks(1000)))[:, 0, 0].diff(dim=1)[:, 0]  # 1 or -1 where both sides agree
    assert bool((rises[:6] == 1).all())
    error = 5 * 0.25**0.5 / 6000**0.5  # five standard errors of a share
    assert abs(float((rises[6:] > 0).double().mean()) - 0.5) < error
    assert abs(float(rises[6:].abs().isclose(torch.ones(())).double().mean()) - 0.5) < error, 'each side by itself'


def test_any_rows_in_any_order_are_those_of_all_in_order():
    blended = BlendedImages(one_hot(), SOURCES, 2, seed=1)
    everything = torch.cat(list(blended.chunks(5)))
    rows = [12, 0, 7, 7, 3]
    assert torch.equal(blended[rows], everything[rows])
    assert torch.equal(blended[torch.tensor(rows)], everything[rows])


def test_a_seed_decides_the_blends_and_shares_are_spread_evenly():
    x, sources = one_hot(), SOURCES.repeat(500)
    first, again, other = (BlendedImages(x, sources, 1, seed)[range(5, 2005)] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    shares = first[torch.arange(2000), sources, 0, 0]
    apart = shares[(first[:, :, 0, 0] > 0).sum(1) == 2]  # of two images
    error = 5 / 12**0.5 / len(apart) ** 0.5  # five standard errors of the mean of a uniform variable
    assert abs(float(apart.mean()) - 0.5) < error


@pytest.fixture
def made(monkeypatch):
    """What is blended, as the fits of a test make it, with the arguments."""
    found = []

    class Seen(BlendedImages):
        def __init__(self, *args):
            super().__init__(*args)
            found.append((self, args))

    monkeypatch.setattr(adaptation_work, 'BlendedImages', Seen)
    return found


def test_blends_are_fitted_to_judge_nothing_and_do_not_count_as_images(made):
    net, x = family_net('vit'), images(32, 24, seed=5)
    options = {'stitches': [3], 'batch_size': 6, 'quiet': True}
    with_blends = snnet.adapt(net, [x], steps=2, blends=2, **options)
    ((blended, (_, sources, count, _)),) = made
    assert sources.tolist() == [i for i in range(24) if i % 4 != 3]
    assert (count, len(blended)) == (2, 24 + 2 * 18)
    assert with_blends.images == (18, 6)
    without = snnet.adapt(family_net('vit'), [x], steps=2, blends=0, **options)
    assert with_blends.stitches[0].before == without.stitches[0].before, 'the same images judge'
    assert with_blends.stitches[0].after != without.stitches[0].after
    snnet.adapt(net, [x], steps=0, **options)
    assert len(made[-1][0]) == 24, 'a report alone needs no blends'


@pytest.mark.parametrize('blends', [-1, 1.5, True])
def test_other_numbers_of_blends_are_refused(blends):
    with pytest.raises(SnnetError, match='blends'):
        snnet.adapt(family_net('vit'), [images(32, 16)], steps=1, blends=blends, quiet=True)
