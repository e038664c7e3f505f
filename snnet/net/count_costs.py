"""FLOPs and parameters of every stitch, summed from the parts of its anchors."""

from __future__ import annotations

from collections.abc import Mapping

from ..anchors.flops import PartFlops, part_flops
from ..reparam import folded
from ..stitching.stitch_layer import merged_state
from .joined_anchors import JoinedAnchors


def count_costs(net: JoinedAnchors, parts: Mapping[str, PartFlops] | None = None) -> list[tuple[int, int]]:
    """FLOPs and parameters of each stitch, by id (see `snnet.measure_costs`)."""
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
    return costs
