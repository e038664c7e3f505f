"""Partition of every network of a zoo into K blocks, and of all blocks into K equivalence sets (DeRy, Eq. 2 to 7).

The objective is the sum, over all blocks, of the functional similarity S to the center of their set:

    J = sum over networks i and stages k of S(B_ik, B_a(i, k))                                          (Eq. 2)

A center is the block of a set that is most similar to all of it. (The paper calls it the anchor block; in this package
an anchor is a whole network.) Each block belongs to one set, and nothing in Eq. 2 to 5 ties block k of a network to
set k: with sets='free' a set holds blocks of any depth, and two blocks of one network may share it. With sets='stage'
block k of every network belongs to set k, so that any choice of one network per stage is an assembly (Eq. 10 and 11).

S is a sum over the two boundaries of a block. Given the centers, the best partition of each network is therefore an
exact dynamic program (dynamic_program.py); given the partitions, the best center of a set is an exact medoid. The
search alternates between the two (partition_search.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import SnnetError
from ..stitching.stitch import Leg
from ..utils.seeds import key
from .dynamic_program import DynamicProgram
from .partition_search import IndexedPartition, alternate, published_search, swap_centers
from .similarity import Similarity

SETS = ('free', 'stage')
"""Whether a block may join any equivalence set, or block k belongs to set k."""
STARTS = {'alternating': 64, 'published': 200}
"""The methods of search, each with its default number of random starts."""

_SWAPS = 3000
"""How many swaps of a center may be tried, roughly: after every start in a small zoo, after none in a large one."""


@dataclass(frozen=True)
class Partition:
    """Every network of a zoo cut into K blocks, and the blocks grouped into K equivalence sets.

    Attributes:
        networks: names, in the order of the zoo.
        cuts: for each network, the K + 1 positions that separate its blocks, from 0 to its last one.
        sets: for each network, the index of the set that each of its blocks belongs to (A in Eq. 2).
        centers: for each set, the block that is most similar to all of it. The published method may leave a set
            without blocks: its center is then the last one that it had.
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
        """The block of a network, by index or name, at a stage from 0 to K - 1."""
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
    """Cuts every network of a zoo into blocks that maximize J, the similarity within equivalence sets (Eq. 2 to 5).

    Args:
        similarity: of all boundaries.
        blocks: K.
        sizes: size of every module of each line, by name of the network (see `line_sizes`).
        epsilon: every block is smaller than (1 + epsilon) / K of its network's line (Eq. 5).
        sets: 'free' lets each block join any set, 'stage' puts block k of each network into set k.
        method: 'alternating' takes exact steps in turn and, in a small zoo, then swaps centers; 'published' is the
            paper's algorithm of Kernighan-Lin swaps (Eq. 6 and 7) and K-means assignments.
        starts: number of random starts, of which the best result is returned; by default as in `STARTS`.
        seed: of the starts.
        progress: called with 1 after each start.

    Raises:
        SnnetError: an unknown option, or lines that cannot be cut this way (see `DynamicProgram`).
        CannotStitch: the size limit cannot be kept; the message names the networks and by how much they miss it.
    """
    if sets not in SETS:
        raise SnnetError(f"sets must be one of {', '.join(SETS)}, not '{sets}'")
    if method not in STARTS:
        raise SnnetError(f"the method must be one of {', '.join(STARTS)}, not '{method}'")
    if starts is not None and starts < 1:
        raise SnnetError(f'at least one start is needed, not {starts}')
    program = DynamicProgram(similarity, blocks, sizes, epsilon)
    search = alternate if method == 'alternating' else published_search
    ends: dict[float, IndexedPartition] = {}
    for start in range(STARTS[method] if starts is None else starts):
        end = search(program, sets == 'free', np.random.default_rng(key(seed, f'partition {method}', start)))
        ends.setdefault(round(end.objective, 9), end)
        if progress is not None:
            progress(1)
    best = [ends[objective] for objective in sorted(ends, reverse=True)]
    if method == 'alternating':
        swapped = best[: _SWAPS // (program.count * len(program.start))]
        best = [swap_centers(program, end, sets == 'free') for end in swapped] or best
    return _with_names(program, max(best, key=lambda end: end.objective))


def _with_names(program: DynamicProgram, found: IndexedPartition) -> Partition:
    """The partition by names and positions; sets are numbered by the mean stage of their blocks."""
    cuts, stages = found.cuts - program.first[:, None], np.tile(np.arange(program.count), len(found.cuts))
    sizes = np.bincount(found.sets, minlength=program.count)
    depth = np.bincount(found.sets, stages, program.count) / np.maximum(sizes, 1)
    order = np.argsort(np.where(sizes > 0, depth, program.count), kind='stable')
    sets = np.argsort(order)[found.sets].reshape(len(cuts), -1)
    return Partition(
        program.names,
        tuple(tuple(row) for row in cuts.tolist()),
        tuple(tuple(row) for row in sets.tolist()),
        tuple(program.leg(start, stop) for start, stop in found.centers[order].tolist()),
        found.objective,
    )
