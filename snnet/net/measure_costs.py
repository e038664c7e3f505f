"""The costs of every stitch, written into the records of a net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ..anchors.flops import PartFlops
from .measured_net import MeasuredNet

Net = TypeVar('Net', bound=MeasuredNet)


def measure_costs(net: Net, parts: Mapping[str, PartFlops] | None = None) -> Net:
    """Fills FLOPs and parameters into the records of a net, and returns it.

    FLOPs are multiply-adds for one image, in fvcore's convention (a norm counts by the element; biases, activations
    and additions count nothing), with fused attention counted as its two matrix products. Branches that fold away
    (see `snnet.reparam`) count nothing.

    Args:
        net: the net.
        parts: `part_flops` of the anchors by name, where they were counted before.
    """
    net.known.measure_costs(net, parts)
    return net
