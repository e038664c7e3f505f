"""FLOPs and parameters of every stitch, summed from the parts of its anchors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..anchors.flops import PartFlops, part_flops
from ..reparam import folded
from ..stitching.stitch_layer import merged_state

if TYPE_CHECKING:
    from .stitchable_net import StitchableNet


def measure_costs(net: StitchableNet, parts: Mapping[str, PartFlops] | None = None) -> StitchableNet:
    """Fills FLOPs and parameters into the records of a net, and returns it.

    FLOPs are multiply-adds for one image, in fvcore's convention (a norm counts by the element; biases, activations
    and additions count nothing), with fused attention counted as its two matrix products. Branches that fold away
    (see `snnet.reparam`) count nothing.

    Args:
        net: the net.
        parts: `part_flops` of the anchors by name, where they were counted before.
    """
    plain = folded(net)
    if parts is None:
        parts = {anchor.name: part_flops(anchor) for anchor in map(plain.anchor, range(len(net.anchors)))}
    sizes = {name: tensor.numel() for name, tensor in merged_state(plain).items()}
    costs: list[tuple[int, int]] = []
    for i, stitch in enumerate(net.stitches):
        flops = sum(net.layer(layer).flops for layer in stitch.layers)
        for leg in stitch.legs:
            flops += parts[leg.anchor].of_run(leg.start, leg.stop, net.anchor(leg.anchor).official)
        params = sum(sizes[name] for name in plain.parameter_names(i) & sizes.keys())
        costs.append((flops, params))
    pairs = zip(net.records, costs, strict=True)
    net.records = [replace(record, flops=flops, params=params) for record, (flops, params) in pairs]
    net.known.note_costs(net)
    return net
