"""Gradients of stitches that have parameters of their own: against their extracted twins and legs run by hand."""

from __future__ import annotations

import copy

import pytest
import torch

import snnet
from snnet.net.own_parameters import OwnParameters, names_behind
from tests.helpers.families import _NETS, images, swept
from tests.helpers.gradients import elementary, farthest, gradients, stored
from tests.net.test_gradients_of_parts import IMAGES, TOLERANCE, by_hand, values, without_chance

each_family = pytest.mark.parametrize(
    'name', swept(('resnet', 'vit', 'maps to windows', 'two ways'), ('resnet', 'two ways'))
)


def with_own(name):
    """A net whose last stitch has all parameters behind its first join for itself; the stitch, and the values."""
    net = without_chance(_NETS[name]().double())
    stitch = max(range(len(net.stitches)), key=lambda i: (len(net.stitches[i].legs), i))
    held = dict(net.named_parameters())
    own = {
        name: (held[name].detach() + 0.1 * values(*held[name].shape, seed=place)).requires_grad_()
        for place, name in enumerate(sorted(frozenset().union(*names_behind(net, stitch))))
    }
    net.set_own_parameters(OwnParameters(net, {stitch: own}))
    return net, stitch, own


def plain_twin(net, own):
    """The net with the values in the places of its own parameters, and nothing else that is special."""
    twin = copy.deepcopy(net)
    twin.set_own_parameters(None)
    with torch.no_grad():
        for name, value in own.items():
            twin.get_parameter(name).copy_(value)
    return elementary(twin)


def with_gradients_of(own, found):
    """Gradients of a run in which a stitch used its own parameters, these under the names they stand in for."""
    used = {name: value.grad.clone() for name, value in own.items() if value.grad is not None}
    assert not used.keys() & found.keys(), 'what the net holds takes no part where the stitch has its own'
    for value in own.values():
        value.grad = None
    return {**found, **used}


@each_family
def test_a_stitch_gets_the_gradients_of_its_own_parameters_and_the_nets_behind_the_join_get_none(name):
    net, stitch, own = with_own(name)
    x, grad = images(net.input_size[-1], IMAGES).double(), values(IMAGES, net.num_classes, seed=1)
    twin = plain_twin(net, own)
    wanted = gradients(lambda x: by_hand(twin, stitch, x), twin, x, grad)
    for how, way in stored(grad):
        given = x if how == 'contiguous' else x.to(memory_format=torch.channels_last)
        found = with_gradients_of(own, gradients(lambda x: net(x, stitch=stitch), net, given, way))
        assert farthest(found, wanted) <= TOLERANCE, how
    net.anchors.requires_grad_(False)
    found = gradients(lambda x: net(x, stitch=stitch), net, x, grad)
    assert found.keys() == {'input', 'output'}
    own_ones = {key: value for key, value in wanted.items() if key in {*own, 'input', 'output'}}
    assert farthest(with_gradients_of(own, found), own_ones) <= TOLERANCE


@each_family
def test_other_stitches_and_anchors_get_the_gradients_of_the_net_and_own_parameters_none(name):
    net, stitch, own = with_own(name)
    twin = plain_twin(net, {})
    x, grad = images(net.input_size[-1], IMAGES).double(), values(net.num_classes, IMAGES, seed=1).T
    for i in {0, 1, next(i for i in range(2, len(net.stitches)) if i != stitch)}:
        found = gradients(lambda x, i=i: net(x, stitch=i), net, x, grad)
        assert farthest(found, gradients(lambda x, i=i: by_hand(twin, i, x), twin, x, grad)) <= TOLERANCE
        assert all(value.grad is None for value in own.values())


def under_names_of_the_net(net, stitch, found):
    """Gradients of an extracted stitch by the names of the net; legs of one anchor hold copies of what they share."""
    chosen, named = net.stitches[stitch], {}
    for key, value in found.items():
        kind, _, rest = key.partition('.')
        if rest:
            number, _, leaf = rest.partition('.')
            place = net.index_of(chosen.legs[int(number)].anchor) if kind == 'anchors' else chosen.layers[int(number)]
            key = f'{kind}.{place}.{leaf}'
        named[key] = named[key] + value if key in named else value
    return named


@pytest.mark.slow_for('resnet-False')
@pytest.mark.parametrize('training', [False, True])
@each_family
def test_an_extracted_stitch_has_the_gradients_of_its_own_parameters_in_either_mode(name, training):
    net, stitch, own = with_own(name)
    cut, twin = net.extract(stitch).train(training), plain_twin(net, own).train(training)
    x, grad = images(net.input_size[-1], IMAGES).double(), values(net.num_classes, IMAGES, seed=1).T
    wanted = gradients(lambda x: by_hand(twin, stitch, x), twin, x, grad)
    for given in (x, x.to(memory_format=torch.channels_last)):
        found = under_names_of_the_net(net, stitch, gradients(cut, cut, given, grad))
        assert farthest(found, wanted) <= TOLERANCE


def test_compiled_blocks_hand_the_gradients_on_to_own_parameters():
    net, stitch, own = with_own('vit')
    x, grad = images(net.input_size[-1], IMAGES).double(), values(IMAGES, net.num_classes, seed=1)
    wanted = with_gradients_of(own, gradients(lambda x: net(x, stitch=stitch), net, x, grad))
    snnet.compile_blocks(net, backend='eager')
    found = with_gradients_of(own, gradients(lambda x: net(x, stitch=stitch), net, x, grad))
    assert farthest(found, wanted) <= TOLERANCE
