"""Partition of every network of a zoo into K blocks, and of all blocks into K equivalence sets (DeRy, Eq. 2 to 7).

The objective J is the sum over all blocks of the functional similarity S to the center of their set: the block of the
set that is most similar to all of it (the paper's anchor block B_aj; an anchor is a whole network in this package).
Each block belongs to one set (below Eq. 3), and nothing in Eq. 2 to 5 ties block k of a network to set k: with
sets='free' a set holds blocks of any depth, and two blocks of one network may share it. With sets='stage', block k of
every network belongs to set k, so that any choice of one network for each stage is an assembly (Eq. 10 and 11).

S is a sum over a block's two boundaries. So, given the centers, the best partition of each network is an exact dynamic
programme (lines.py), and, given the partitions, the best center of a set is an exact medoid; the two alternate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import SnnetError
from ..stitching.stitch import Leg
from ..utils.seeds import key
from .partition_lines import Lines
from .partition_search import State, alternate, published, swap_centers
from .similarity import Similarity

SETS = ('free', 'stage')
STARTS = {'alternating': 64, 'published': 200}
"""Names of the methods, each with its number of starts."""

_SWAPS = 3000
"""Swaps of a center that may be tried, about: from all ends in a zoo of few blocks, from none in one of many."""


@dataclass(frozen=True)
class Partition:
    """Every network of a zoo cut into K blocks, and the blocks grouped into K equivalence sets.

    Attributes:
        networks: names, in the order of the zoo.
        cuts: of each network, the K + 1 positions from 0 to its last between which its blocks lie.
        sets: of each network, the index of the set that each of its blocks belongs to (A of Eq. 2).
        centers: of each set, the block that is most similar to all of it (B_aj). The published method may leave a
            set without blocks: its center is then the one that it had last.
        objective: J, the sum of S of every block to its center (Eq. 2).
    """

    networks: tuple[str, ...]
    cuts: tuple[tuple[int, ...], ...]
    sets: tuple[tuple[int, ...], ...]
    centers: tuple[Leg, ...]
    objective: float

    @property
    def stages(self) -> int:
        """K, the number of blocks of each network."""
        return len(self.centers)

    def block(self, network: int | str, stage: int) -> Leg:
        """Block of a network, by index or name, at a stage from 0 to K - 1."""
        i = self.networks.index(network) if isinstance(network, str) else network
        return Leg(self.networks[i], self.cuts[i][stage], self.cuts[i][stage + 1])

    def members(self, which: int) -> tuple[Leg, ...]:
        """The blocks of a set."""
        return tuple(
            self.block(i, k) for i, sets in enumerate(self.sets) for k, index in enumerate(sets) if index == which
        )


def partition_zoo(
    similarity: Similarity,
    blocks: int,
    sizes: Mapping[str, Sequence[int]],
    *,
    epsilon: float = 0.2,
    sets: str = 'free',
    method: str = 'alternating',
    starts: int | None = None,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Partition:
    """Cuts every network of a zoo into blocks so that blocks of one set are most similar: maximizes J (Eq. 2 to 5).

    Args:
        similarity: of all boundaries.
        blocks: K.
        sizes: of every module of each line, by name of the network (see `line_sizes`).
        epsilon: every block is smaller than (1 + epsilon) / K of its network's line (Eq. 5).
        sets: 'free' lets each block join any set, 'stage' puts block k of each network into set k.
        method: 'alternating' takes exact steps in turn and, in a small zoo, swaps centers then; 'published' is the
            paper's algorithm of Kernighan-Lin swaps (Eq. 6 and 7) and K-means assignments.
        starts: how many random starts, of which the best end is returned; by default as in `STARTS`.
        seed: of the starts.
        progress: is told 1 after each start.

    Raises:
        SnnetError: an unknown option, or lines that cannot be cut so (see `Lines`).
        CannotStitch: the size limit cannot be kept; the message names the networks and by how much they miss it.
    """
    if sets not in SETS:
        raise SnnetError(f"sets is one of {', '.join(SETS)}, not '{sets}'")
    if method not in STARTS:
        raise SnnetError(f"the method is one of {', '.join(STARTS)}, not '{method}'")
    if starts is not None and starts < 1:
        raise SnnetError(f'at least one start is needed, not {starts}')
    lines = Lines(similarity, blocks, sizes, epsilon)
    climb = alternate if method == 'alternating' else published
    ends: dict[float, State] = {}
    for start in range(STARTS[method] if starts is None else starts):
        state = climb(lines, sets == 'free', np.random.default_rng(key(seed, f'partition {method}', start)))
        ends.setdefault(round(state.objective, 9), state)
        if progress is not None:
            progress(1)
    best = [ends[objective] for objective in sorted(ends, reverse=True)]
    if method == 'alternating':
        swapped = best[: _SWAPS // (lines.count * len(lines.start))]
        best = [swap_centers(lines, state, sets == 'free') for state in swapped] or best
    return _named(lines, max(best, key=lambda state: state.objective))


def _named(lines: Lines, state: State) -> Partition:
    """The partition by names and positions; sets are numbered by the mean stage of their blocks."""
    cuts, stages = state.cuts - lines.first[:, None], np.tile(np.arange(lines.count), len(state.cuts))
    sizes = np.bincount(state.sets, minlength=lines.count)
    depth = np.bincount(state.sets, stages, lines.count) / np.maximum(sizes, 1)
    order = np.argsort(np.where(sizes > 0, depth, lines.count), kind='stable')
    sets = np.argsort(order)[state.sets].reshape(len(cuts), -1)
    return Partition(
        lines.names,
        tuple(tuple(row) for row in cuts.tolist()),
        tuple(tuple(row) for row in sets.tolist()),
        tuple(lines.leg(start, stop) for start, stop in state.centers[order].tolist()),
        state.objective,
    )
