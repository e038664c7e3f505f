"""A net with fewer stitches: those that are worth having, for example."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from ..stitching.stitch import Stitch
from .own_parameters import OwnParameters
from .stitch_statistics import Statistics, StatisticsGroup
from .stitchable_net import StitchableNet

_log = logging.getLogger(__name__)


def keep_stitches(net: StitchableNet, stitches: Iterable[int]) -> StitchableNet:
    """A net of the same anchors with only some of the stitches, which answer as before, bit for bit.

    Anchors always stay. Ids are numbered again, in the old order, and stitch layers that nothing runs any more are left
    out. Accuracies, costs, BatchNorm statistics and own parameters of the stitches that stay are taken along; latency
    tables are not, because they belong to the old net.

    Args:
        net: is not changed; the new net has copies of its parameters.
        stitches: ids of those to keep, in any order.

    Raises:
        UnknownStitch: no such id.
    """
    net.known.verified(net).follow_modules(net)
    kept = sorted({record.stitch for record in net.records if record.anchor} | {net.checked(i) for i in stitches})
    layers = sorted({layer for i in kept for layer in net.stitches[i].layers})
    places = {layer: place for place, layer in enumerate(layers)}
    chosen = [Stitch(net.stitches[i].legs, tuple(places[layer] for layer in net.stitches[i].layers)) for i in kept]
    found = type(net)([net.anchor(i).duplicate() for i in range(len(net.anchors))], chosen)
    for layer, place in places.items():
        found.stitch_layers[place] = copy.deepcopy(net.layer(layer))
    found.projections = copy.deepcopy(net.projections)
    found.preprocessing, found.several_labels = dict(net.preprocessing), net.several_labels
    found.class_names = net.class_names
    found.train(net.training)
    if net.latency_tables:
        _log.warning('latency tables are not taken along: measure the new net with snnet profile')
    found.known.costs_hold = net.known.costs_hold
    ids = {old: new for new, old in enumerate(kept)}
    found.set_statistics(_kept_statistics(net, found, ids, places))
    found.set_own_parameters(_kept_parameters(net, found, ids, places))
    found.records = [replace(net.records[old], stitch=new, latency_ms=None, memory=None) for old, new in ids.items()]
    return found


def _kept_statistics(
    net: StitchableNet, found: StitchableNet, ids: dict[int, int], places: dict[int, int]
) -> Statistics | None:
    """The statistics of the stitches that stay, under their new ids; None where the net has none."""
    old = net.statistics
    if old is None:
        return None
    values: dict[str, Tensor] = {}
    groups = []
    for group in old.groups:
        stay = [i for i in group.stitches if i in ids]
        if stay:
            groups.append(StatisticsGroup(group.share, tuple(ids[i] for i in stay)))
            for place, value in (old.mixed(net, stay) if group.share else {}).items():
                owner, depth, name = place.split('.', 2)
                values[f'{ids[int(owner)]}.{depth}.{_renamed(name, places)}'] = value.clone()
    return Statistics(found, values, groups, old.samples, old.held_out)


def _kept_parameters(
    net: StitchableNet, found: StitchableNet, ids: dict[int, int], places: dict[int, int]
) -> OwnParameters | None:
    """The own parameters of the stitches that stay, under the new names; None where the net has none."""
    old = net.own_parameters
    if old is None:
        return None
    return OwnParameters(
        found,
        {
            ids[i]: {_renamed(name, places): tensor.clone() for name, tensor in own.items()}
            for i, own in old.values.items()
            if i in ids
        },
    )


def _renamed(name: str, places: dict[int, int]) -> str:
    """The name that a tensor of the net has in the new one, where stitch layers have other places."""
    kind, _, rest = name.partition('.')
    if kind != 'stitch_layers':
        return name
    layer, _, leaf = rest.partition('.')
    return f'{kind}.{places[int(layer)]}.{leaf}'
