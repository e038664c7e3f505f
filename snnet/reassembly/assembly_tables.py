"""Tables from which every assembly is costed and scored: one entry per block and per join, not per assembly."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..anchors.anchor import Anchor
from ..anchors.boundary import Boundary
from ..anchors.flops import PartFlops, part_flops
from ..errors import SnnetError
from .block_flops import flops_without_prefix
from .join_layer import boundary_behind_join
from .new_head import new_head_costs
from .partition import Partition
from .similarity import Similarity
from .zoo import leg_params

JoinCosts = Callable[[Boundary, Boundary], tuple[int, int] | None]
"""FLOPs and parameters of the join from one boundary to another, or None where there is none."""
StemCosts = Callable[[Boundary], tuple[int, int]]
"""FLOPs and parameters of a new stem that leads to a boundary."""
HeadCosts = Callable[[Anchor, Boundary], tuple[int, int]]
"""FLOPs and parameters of a new head of an assembly whose last block is from a network, from what that block gives."""


@dataclass(frozen=True, eq=False)
class AssemblyTables:
    """What every assembly is costed and scored from, for N networks, K stages and V variants.

    A variant is a network whose prefix tokens (a class token) either flow, as in the network itself, or were lost at
    an earlier join. A network without such tokens has one variant.

    Attributes:
        partition: whose blocks are assembled.
        costs: FLOPs and parameters of each block (K, V, 2), stem and head included; inf where a block cannot run.
        joins: FLOPs and parameters of the joins between stages (K - 1, V, V, 2), front by end; inf where none exists.
        scores: similarity at each join (K - 1, V, V).
        networks: index of the network of each variant (V,); by default network v is variant v.
    """

    partition: Partition
    costs: np.ndarray
    joins: np.ndarray
    scores: np.ndarray
    networks: np.ndarray | None = None

    @property
    def network_of(self) -> np.ndarray:
        """Index of the network of each variant (V,)."""
        return np.arange(self.costs.shape[1]) if self.networks is None else self.networks


def map_costs(front: Boundary, end: Boundary) -> tuple[int, int]:
    """FLOPs and parameters of a plain 1x1 map with bias on the smaller of the two grids; resampling counts nothing.

    Prefix tokens are mapped if both sides have the same number of them, and dropped otherwise.
    """
    cells = min(math.prod(front.grid), math.prod(end.grid))
    tokens = cells + (front.prefix if front.prefix == end.prefix else 0)
    return tokens * front.channels * end.channels, (front.channels + 1) * end.channels


def tabulate(
    partition: Partition,
    anchors: Sequence[Anchor],
    similarity: Similarity,
    *,
    join: JoinCosts = map_costs,
    stem: StemCosts | None = None,
    head: HeadCosts | None = None,
    own_heads: Collection[str] | None = None,
    parts: Mapping[str, PartFlops] | None = None,
) -> AssemblyTables:
    """Costs and scores of every block and every join.

    Every block is costed on the grid that it has in its own network, because features are resampled to that grid.

    Args:
        partition: of the zoo.
        anchors: the zoo.
        similarity: of all boundaries.
        join: costs of a join. Blocks that follow each other in their own network need none.
        stem: costs of a new stem; by default an assembly has the stem of its first network.
        head: costs of a new head, for assemblies that cannot end in the head of their last network; None if there are
            no such assemblies.
        own_heads: networks whose head may end an assembly, if the prefix tokens that it looks at are there. By default
            none if `head` is given; otherwise all, with new heads of as many classes for the rest.
        parts: `part_flops` of the networks by name, if they have been counted before.

    Raises:
        SnnetError: a network of the partition is not among the anchors.
    """
    by_name = {anchor.name: anchor for anchor in anchors}
    missing = [name for name in partition.networks if name not in by_name]
    if missing:
        raise SnnetError(f'the zoo of {", ".join(by_name)} lacks {", ".join(missing)} of the partition')
    if own_heads is None:
        own_heads = by_name if head is None else ()
        head = head or _new_head_costs
    variants = []
    for i, name in enumerate(partition.networks):
        anchor, counted = by_name[name], parts[name] if parts else part_flops(by_name[name])
        variants.append(_Variant(i, anchor, partition, True, counted))
        if anchor.boundaries[0].prefix:
            variants.append(_Variant(i, anchor, partition, False, counted))
    stages, count = partition.stages, len(variants)
    costs = np.full((stages, count, 2), np.inf)
    joins = np.full((stages - 1, count, count, 2), np.inf)
    scores = np.zeros((stages - 1, count, count))
    for v, variant in enumerate(variants):
        for k in range(stages):
            found = variant.costs(k, stem, head, variant.anchor.name in own_heads)
            if found is not None:
                costs[k, v] = found
        for w, other in enumerate(variants):
            cuts = partition.cuts[variant.network][1:-1], partition.cuts[other.network][1:-1]
            scores[:, v, w] = similarity.between(variant.anchor.name, other.anchor.name)[cuts]
            for k in range(stages - 1):
                between = variant.join_costs(k, other, join)
                if between is not None:
                    joins[k, v, w] = between
    return AssemblyTables(partition, costs, joins, scores, np.array([variant.network for variant in variants]))


def _new_head_costs(anchor: Anchor, front: Boundary) -> tuple[int, int]:
    return new_head_costs(anchor.num_classes, front)


class _Variant:
    """A network whose prefix tokens flow (full), or were lost before."""

    def __init__(self, network: int, anchor: Anchor, partition: Partition, full: bool, parts: PartFlops) -> None:
        self.network, self.anchor, self.partition, self.full = network, anchor, partition, full
        self.parts = parts
        self.modules = parts.modules if full else flops_without_prefix(anchor)
        self.at = [self._flowing(anchor.boundaries[cut]) for cut in partition.cuts[network]]

    def _flowing(self, boundary: Boundary) -> Boundary:
        return boundary if self.full else replace(boundary, prefix=0)

    def costs(self, k: int, stem: StemCosts | None, head: HeadCosts | None, own_head: bool) -> np.ndarray | None:
        """FLOPs and parameters (2,) of block k, or None where it cannot run like this."""
        block, last = self.partition.block(self.network, k), self.partition.stages - 1
        assert block.start is not None
        assert block.stop is not None
        if k == 0 and self.full != (stem is None or self.anchor.boundaries[0].prefix == 0):
            return None  # a new stem makes no prefix tokens, the network's own makes all
        modules = [self.modules[p] for p in range(block.start, block.stop)]
        known = [flops for flops in modules if flops is not None]
        if len(known) < len(modules):
            return None
        leg, total = block, np.array([sum(known), 0], dtype=np.float64)
        if k == 0:
            leg = replace(leg, start=None) if stem is None else leg
            total += (self.parts.stem, 0) if stem is None else stem(self.at[0])
        if k == last:
            if own_head and self.full:
                leg = replace(leg, stop=None)
                total[0] += self.parts.of_run(block.stop, None, self.anchor.official)
            elif head is None:
                return None
            else:
                total += head(self.anchor, self.at[-1])
        total[1] += leg_params(self.anchor, leg.start, leg.stop)
        return total

    def join_costs(self, k: int, other: _Variant, join: JoinCosts) -> tuple[int, int] | None:
        """FLOPs and parameters of the join behind block k to block k + 1 of another variant."""
        if self.network == other.network:
            return (0, 0) if self.full == other.full else None
        front, end = self.at[k + 1], other.anchor.boundaries[self.partition.cuts[other.network][k + 1]]
        behind = boundary_behind_join(front, end, resample=True)
        return join(front, end) if other.full == (behind.prefix == end.prefix) else None
