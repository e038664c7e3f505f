from __future__ import annotations

import pytest
import torch
from einops import rearrange

from snnet import CannotStitch, Leg, SnnetError, Stitch, StitchableNet
from snnet.anchors.boundary import Boundary
from snnet.stitching.stitch_layer import StitchLayer
from tests.helpers.families import family_net, three_vits


@pytest.fixture(scope='module')
def net():
    return three_vits()


def matrix_product(layer, x):
    return x @ layer.weight.T + layer.bias


@pytest.mark.parametrize('front', ['NCHW', 'NHWC', 'NLC'])
@pytest.mark.parametrize('end', ['NCHW', 'NHWC', 'NLC'])
def test_a_stitch_layer_maps_every_vector_alike_whatever_the_layouts(front, end):
    axes = {'NCHW': 'n c h w', 'NHWC': 'n h w c', 'NLC': 'n (h w) c'}
    layer = StitchLayer(Boundary(3, (2, 5), front), Boundary(4, (2, 5), end)).double()
    x = torch.randn(2, 2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = rearrange(matrix_product(layer, x), f'n h w c -> {axes[end]}')
    actual = layer(rearrange(x, f'n h w c -> {axes[front]}'))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)


def test_a_stitch_layer_maps_prefix_tokens_too_and_refuses_other_ones():
    tokens = Boundary(3, (2, 2), 'NLC', 1)
    layer = StitchLayer(tokens, Boundary(4, (2, 2), 'NLC', 1))
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(layer(x)[:, 0], matrix_product(layer, x[:, 0]))
    with pytest.raises(CannotStitch, match=r'2x2 \+ 1 prefix'):
        StitchLayer(tokens, Boundary(4, (2, 2), 'NLC'))


@pytest.mark.parametrize(
    ('legs', 'told'),
    [
        ('w16[:1] > nobody[1:]', "no anchor 'nobody', only w16, w24, w32"),
        ('w16[:1] > w24[4:]', 'positions of w24 run from 0 to 3'),
        ('w16[:3] > w24[2:1] > w32[1:]', 'positions of w24 run from 0 to 3'),
    ],
)
def test_legs_that_are_not_there_are_refused(net, legs, told):
    layers = tuple(range(legs.count('>')))
    with pytest.raises(CannotStitch, match=told):
        StitchableNet(list(net.anchors), [Stitch.parse(legs, layers)])


def test_a_layer_cannot_join_two_kinds_of_boundaries_and_numbers_have_no_gaps(net):
    first, second = 'w16[:1] > w24[1:]', 'w24[:1] > w32[1:]'
    with pytest.raises(CannotStitch, match='layer 0 already joins other boundaries'):
        StitchableNet(list(net.anchors), [Stitch.parse(first, (0,)), Stitch.parse(second, (0,))])
    with pytest.raises(CannotStitch, match='without gaps'):
        StitchableNet(list(net.anchors), [Stitch.parse(first, (1,))])


@pytest.mark.slow  # a few seconds
def test_boundaries_that_do_not_join_are_refused_telling_both():
    net = family_net('convnext')
    with pytest.raises(CannotStitch, match=r'16x16.*8x8'):
        StitchableNet(list(net.anchors), [Stitch.parse('small[:1] > large[4:]', (0,))])


@pytest.mark.parametrize('text', ['a[:1] > b[2:]', 'a[:]', 'a[:1] > b[2:4] > c[0:]', 'a b[:10] > c.d-e[11:]'])
def test_stitches_print_as_they_parse(text):
    layers = tuple(range(text.count('>')))
    assert str(Stitch.parse(text, layers)) == text


@pytest.mark.parametrize('text', ['a', 'a[1:2', 'a[-1:]', '', 'a[:1] > b[2:3]', 'a[1:]', 'a[:] > b[1:]', 'a[:x]'])
def test_what_is_no_stitch_is_refused(text):
    with pytest.raises(SnnetError, match=r'is not a valid (leg|stitch)'):
        Stitch.parse(text, tuple(range(text.count('>'))))


def test_a_stitch_needs_one_layer_between_each_two_legs():
    with pytest.raises(SnnetError, match='2 legs and 2 stitch layers'):
        Stitch((Leg('a', None, 1), Leg('b', 1, None)), (0, 1))


@pytest.mark.parametrize('name', ['', 'a>b', 'a[1]'])
def test_names_that_could_not_be_read_back_are_refused(name):
    with pytest.raises(SnnetError, match='cannot name an anchor'):
        Leg(name)
