"""All blocks that a partition of a zoo may use, and the best partition of each network by a dynamic programme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np

from ..errors import CannotStitch, SnnetError
from ..stitching.stitch import Leg
from .similarity import Similarity


class Lines:
    """The blocks of a zoo that are below the size limit, and what the partition algorithms ask of them.

    A block is written as two rows of the similarity matrix: the boundary where it starts and the one where it stops.
    Equation 5 limits its size: |B| < (1 + epsilon) |M| / K, strictly, where |M| is the size of its network's line.

    Args:
        similarity: of the zoo's boundaries.
        blocks: K, into how many blocks each network is cut.
        sizes: of every module of each network's line, by name.
        epsilon: how much larger than the K-th part of its network a block may nearly be.

    Raises:
        SnnetError: K is below 2 or above the number of modules of a network, fewer than two networks, epsilon out of
            range, or sizes that do not belong to the lines.
        CannotStitch: a network that cannot be cut below the limit; the message says by how much each one misses it.
    """

    def __init__(self, similarity: Similarity, blocks: int, sizes: Mapping[str, Sequence[int]], epsilon: float) -> None:
        counts = similarity.positions
        _check(counts, blocks, sizes, epsilon)
        self.count, self.s = blocks, similarity.matrix
        self.names = tuple(counts)
        self.network = np.repeat(np.arange(len(counts)), list(counts.values()))
        """Index of the network that each row of the similarity matrix belongs to."""
        ends = np.cumsum(list(counts.values()))
        self.first, self.last = ends - list(counts.values()), ends - 1
        totals = [[0, *accumulate(int(size) for size in sizes[name])] for name in counts]
        share = (1 + Fraction(str(float(epsilon)))) / blocks
        pairs = [
            (first + x, first + y)
            for first, total in zip(self.first.tolist(), totals, strict=True)
            for y in range(len(total))
            for x in range(y)
            if total[y] - total[x] < share * total[-1]
        ]
        table = np.array(pairs, dtype=np.intp).reshape(-1, 2)
        self.start, self.stop = table[:, 0], table[:, 1]
        """Where each block that is below the limit starts and stops, ordered by its stop."""
        self.allowed = frozenset(pairs)
        self.stops, self._runs = np.unique(self.stop, return_index=True)
        reached = self._forward(np.zeros((blocks, len(self.start))))[1][self.last]
        if not np.isfinite(reached).all():
            failed = [i for i, value in enumerate(reached) if value == -np.inf]
            raise CannotStitch(_infeasible([(self.names[i], totals[i]) for i in failed], blocks, epsilon))

    def best(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The partition of each network with the largest sum of values, exactly.

        Args:
            values: of each block as the k-th of its network (K, blocks); -inf forbids it.

        Returns:
            Cuts (networks, K + 1), as rows of the similarity matrix, and the sums (networks,).
        """
        candidates, reached = self._forward(values)
        cuts = np.empty((len(self.names), self.count + 1), dtype=np.intp)
        cuts[:, -1] = self.last
        for k in reversed(range(self.count)):
            best = np.full(len(self.s), -np.inf)
            best[self.stops] = np.maximum.reduceat(candidates[k], self._runs)
            winners = np.flatnonzero(candidates[k] == best[self.stop])[::-1]  # of equal ones the longest block stays
            chosen = np.zeros(len(self.s), dtype=np.intp)
            chosen[self.stop[winners]] = winners
            cuts[:, k] = self.start[chosen[cuts[:, k + 1]]]
        return cuts, reached[self.last]

    def best_sum(self, values: np.ndarray) -> float:
        """The sums of `best` over all networks; -inf where a network has no partition without forbidden blocks."""
        return float(self._forward(values)[1][self.last].sum())

    def _forward(self, values: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Best sums of each number of blocks: up to and with each block, and at the end of K blocks at each row."""
        reached = np.full(len(self.s), -np.inf)
        reached[self.first] = 0
        candidates = []
        for k in range(self.count):
            candidates.append(reached[self.start] + values[k])
            reached = np.full(len(self.s), -np.inf)
            if len(self.stops):
                reached[self.stops] = np.maximum.reduceat(candidates[-1], self._runs)
        return candidates, reached

    def functional(self, cuts: np.ndarray) -> np.ndarray:
        """S of every two blocks of a partition (networks x K, networks x K), network by network."""
        return self.to(cuts[:, :-1].ravel(), cuts[:, 1:].ravel(), cuts)

    def to(self, start: np.ndarray, stop: np.ndarray, cuts: np.ndarray) -> np.ndarray:
        """S of some blocks (by row of start and stop) to all blocks of a partition."""
        return self.s[np.ix_(start, cuts[:, :-1].ravel())] + self.s[np.ix_(stop, cuts[:, 1:].ravel())]

    def leg(self, start: int, stop: int) -> Leg:
        """A block by name and positions."""
        network = int(self.network[start])
        first = int(self.first[network])
        return Leg(self.names[network], int(start) - first, int(stop) - first)


def _check(counts: Mapping[str, int], blocks: int, sizes: Mapping[str, Sequence[int]], epsilon: float) -> None:
    if len(counts) < 2:
        raise SnnetError(f'a zoo is at least two networks to take blocks from, {len(counts)} given')
    if blocks < 2:
        raise SnnetError(f'networks are cut into at least 2 blocks, not {blocks}')
    if not 0 <= epsilon < float('inf'):
        raise SnnetError(f'epsilon is zero or a positive finite number, not {epsilon}')
    shortest = min(counts, key=lambda name: counts[name])
    if counts[shortest] - 1 < blocks:
        raise SnnetError(
            f'{shortest} has {counts[shortest] - 1} modules on its line: it cannot be cut into {blocks} blocks'
        )
    for name, positions in counts.items():
        if len(sizes.get(name, ())) != positions - 1 or min(sizes[name]) < 0 or sum(sizes[name]) <= 0:
            raise SnnetError(f'{name} needs a size for each of its {positions - 1} modules, not {sizes.get(name)}')


def _infeasible(failed: list[tuple[str, list[int]]], blocks: int, epsilon: float) -> str:
    """Which networks miss the size limit, and by how much even their best partition does."""
    parts = []
    for name, totals in failed:
        largest = _smallest_largest(totals, blocks)
        parts.append(f'{name} (epsilon above {largest * blocks / totals[-1] - 1:.3g})')
    return (
        f'no cut into {blocks} blocks keeps every block below {1 + epsilon:g}/{blocks} of its network: '
        f'larger ones are needed by {", ".join(parts)}; raise epsilon or measure size otherwise'
    )


def _smallest_largest(totals: Sequence[int], blocks: int) -> int:
    """The smallest possible size of the largest of so many blocks of one network, from its running totals."""
    best = list(totals)
    for k in range(1, blocks):
        best = [
            min((max(best[x], totals[y] - totals[x]) for x in range(k, y)), default=totals[-1] + 1)
            for y in range(len(totals))
        ]
    return best[-1]
