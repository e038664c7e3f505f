"""A net with fewer stitches answers as the one it was made from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import snnet
from snnet import UnknownStitch
from snnet.net.keep_stitches import keep_stitches
from snnet.net.own_parameters import OwnParameters, names_behind
from tests.helpers.families import _NETS, images, swept

NETS = ('resnet', 'vit', 'swin', 'levit', 'three legs', 'two ways')
each_net = pytest.mark.parametrize('name', swept(NETS, 'resnet'))


def joined(net):
    return [i for i, stitch in enumerate(net.stitches) if len(stitch.legs) > 1]


def made(name):
    """A net whose stitches have accuracies and, every third one, statistics and parameters of their own."""
    net, some = _NETS[name](), torch.Generator().manual_seed(0)
    net.eval()
    if name == 'resnet':
        snnet.recalibrate(net, [images(net.input_size[1], 16)], samples=16, shares=[0.5])
    values = {}
    for stitch in joined(net)[::3]:
        last = sorted(names_behind(net, stitch)[-1])
        values[stitch] = {
            n: (p := net.get_parameter(n).detach()) + 0.1 * torch.randn(p.shape, generator=some)
            for n in last
            if n.startswith('stitch_layers') or 'norm' in n or 'bn' in n
        }
    net.set_own_parameters(OwnParameters(net, values))
    net.records = [replace(record, top1=50.0 + record.stitch) for record in net.records]
    return net


@each_net
def test_what_stays_answers_the_same_bits_and_keeps_what_is_known(name):
    net = made(name)
    x, chosen = images(net.input_size[1], 2), joined(net)[1::2]
    smaller = keep_stitches(net, reversed(chosen))
    kept = [*range(len(net.anchors)), *chosen]
    assert [stitch.legs for stitch in smaller.stitches] == [net.stitches[i].legs for i in kept]
    with torch.no_grad():
        for new, old in enumerate(kept):
            assert torch.equal(smaller(x, stitch=new), net(x, stitch=old)), str(net.stitches[old])
    assert smaller.records == [replace(net.records[old], stitch=new) for new, old in enumerate(kept)]
    used = {layer for i in chosen for layer in net.stitches[i].layers}
    assert len(smaller.stitch_layers) == len(used) <= len(net.stitch_layers)
    assert not {p.data_ptr() for p in smaller.parameters()} & {p.data_ptr() for p in net.parameters()}


def test_it_is_saved_and_loaded_with_its_statistics_and_own_parameters(tmp_path):
    net = made('resnet')
    smaller = keep_stitches(net, joined(net)[2:5])
    smaller.class_names = [f'class {i}' for i in range(net.num_classes)]
    again = keep_stitches(smaller, joined(smaller))
    again.save_pretrained(tmp_path)
    loaded = snnet.StitchableNet.from_pretrained(tmp_path)
    x = images(net.input_size[1], 2)
    with torch.no_grad():
        assert all(torch.equal(loaded(x, stitch=i), smaller(x, stitch=i)) for i in range(len(smaller.stitches)))
    assert loaded.statistics.stitches == list(range(len(smaller.stitches)))
    assert loaded.own_parameters.stitches == smaller.own_parameters.stitches != []
    assert loaded.class_names == smaller.class_names


def test_anchors_always_stay_and_an_unknown_id_is_refused():
    net = _NETS['vit']()
    assert keep_stitches(net, []).records == net.records[: len(net.anchors)]
    assert len(keep_stitches(net, []).stitch_layers) == 0
    with pytest.raises(UnknownStitch, match='99'):
        keep_stitches(net, [99])
