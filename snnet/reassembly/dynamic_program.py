"""The dynamic program that cuts every network of a zoo into its best blocks, exactly (DeRy, Eq. 2 and 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np

from ..errors import CannotStitch, SnnetError
from ..stitching.stitch import Leg
from .similarity import Similarity


class DynamicProgram:
    """All blocks below the size limit, and the cuts of each network with the largest sum of block values.

    With `best[k, y]` the largest sum that k blocks reach when the last one stops at boundary y,

        best[k + 1, y] = max over blocks (x, y) of best[k, x] + value[k, (x, y)]

    which is computed for all networks at once: the rows of the similarity matrix number the boundaries of all of them,
    and a block is written as the row where it starts and the row where it stops.

    Equation 5 limits the size of a block: |B| < (1 + epsilon) |M| / K, strictly, where |M| is the size of the line of
    its network.

    Args:
        similarity: of the zoo's boundaries.
        blocks: K, the number of blocks each network is cut into.
        sizes: size of every module of each network's line, by name of the network.
        epsilon: by which share a block may exceed the K-th part of its network.

    Attributes:
        count: K.
        s: the similarity matrix (boundaries, boundaries).
        names: names of the networks.
        first, last: row of the first and of the last boundary of each network (networks,).
        start, stop: rows where each allowed block starts and stops (blocks,), ordered by `stop`.
        allowed: the same pairs, as a set.

    Raises:
        SnnetError: K is below 2 or above the number of modules of a network, fewer than two networks, epsilon out of
            range, or sizes that do not belong to the lines.
        CannotStitch: a network that cannot be cut below the limit; the message says by how much each one misses it.
    """

    def __init__(self, similarity: Similarity, blocks: int, sizes: Mapping[str, Sequence[int]], epsilon: float) -> None:
        positions = similarity.positions
        check_blocks(positions, blocks, epsilon)
        _check_sizes(positions, sizes)
        self.count, self.s = blocks, similarity.matrix
        self.names = tuple(positions)
        counts = np.array(list(positions.values()))
        self._network = np.repeat(np.arange(len(counts)), counts)  # (boundaries,)
        self.last = np.cumsum(counts) - 1
        self.first = self.last + 1 - counts
        totals = [[0, *accumulate(int(size) for size in sizes[name])] for name in positions]
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
        self.allowed = frozenset(pairs)
        self._stops, self._runs = np.unique(self.stop, return_index=True)
        reached = self._forward(np.zeros((blocks, len(self.start))))[1][self.last]
        if not np.isfinite(reached).all():
            failed = [i for i, value in enumerate(reached) if value == -np.inf]
            raise CannotStitch(_infeasible([(self.names[i], totals[i]) for i in failed], blocks, epsilon))

    def best(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The partition of each network with the largest sum of values, exactly.

        Args:
            values: value of each allowed block as the k-th of its network (K, blocks); -inf forbids it.

        Returns:
            Cuts (networks, K + 1) as rows of the similarity matrix, and the sums (networks,).
        """
        candidates, reached = self._forward(values)
        cuts = np.empty((len(self.names), self.count + 1), dtype=np.intp)
        cuts[:, -1] = self.last
        for k in reversed(range(self.count)):
            best = self._best_at_rows(candidates[k])
            winners = np.flatnonzero(candidates[k] == best[self.stop])[::-1]  # of equal ones the longest block stays
            chosen = np.zeros(len(self.s), dtype=np.intp)
            chosen[self.stop[winners]] = winners
            cuts[:, k] = self.start[chosen[cuts[:, k + 1]]]
        return cuts, reached[self.last]

    def best_sum(self, values: np.ndarray) -> float:
        """The sum that `best` reaches over all networks; -inf if one has no partition without forbidden blocks."""
        return float(self._forward(values)[1][self.last].sum())

    def functional(self, cuts: np.ndarray) -> np.ndarray:
        """S between every two blocks of a partition (networks x K, networks x K), network by network."""
        return self.to(cuts[:, :-1].ravel(), cuts[:, 1:].ravel(), cuts)

    def to(self, start: np.ndarray, stop: np.ndarray, cuts: np.ndarray) -> np.ndarray:
        """S of the blocks (start[i], stop[i]) to all blocks of a partition (blocks, networks x K).

        S is the sum of the similarities of the inputs and of the outputs (Definition 3).
        """
        inputs: np.ndarray = self.s[np.ix_(start, cuts[:, :-1].ravel())]
        outputs: np.ndarray = self.s[np.ix_(stop, cuts[:, 1:].ravel())]
        both: np.ndarray = inputs + outputs
        return both

    def leg(self, start: int, stop: int) -> Leg:
        """A block by name and positions."""
        network = int(self._network[start])
        first = int(self.first[network])
        return Leg(self.names[network], int(start) - first, int(stop) - first)

    def _forward(self, values: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Runs the recursion.

        Returns:
            For each k, the best sum of k + 1 blocks of which the given block is the last (blocks,); and the best sum
            of K blocks that stop at each row (boundaries,).
        """
        reached = np.full(len(self.s), -np.inf)
        reached[self.first] = 0
        candidates = []
        for k in range(self.count):
            candidates.append(reached[self.start] + values[k])
            reached = self._best_at_rows(candidates[-1])
        return candidates, reached

    def _best_at_rows(self, values: np.ndarray) -> np.ndarray:
        """The largest value of the blocks that stop at each row (boundaries,), from one per block (blocks,)."""
        best = np.full(len(self.s), -np.inf)
        if len(self._stops):
            best[self._stops] = np.maximum.reduceat(values, self._runs)
        return best


def check_blocks(positions: Mapping[str, int], blocks: int, epsilon: float) -> None:
    """Refuses settings that no partition can satisfy, whatever the similarity and sizes.

    Args:
        positions: number of positions of each network, by name.
        blocks: K.
        epsilon: as for `DynamicProgram`.

    Raises:
        SnnetError: fewer than two networks or blocks, more blocks than a network has modules, or a bad epsilon.
    """
    if len(positions) < 2:
        raise SnnetError(f'a zoo needs at least two networks to take blocks from, {len(positions)} given')
    if blocks < 2:
        raise SnnetError(f'networks are cut into at least 2 blocks, not {blocks}')
    if not 0 <= epsilon < float('inf'):
        raise SnnetError(f'epsilon must be zero or a positive finite number, not {epsilon}')
    shortest = min(positions, key=lambda name: positions[name])
    if positions[shortest] - 1 < blocks:
        raise SnnetError(
            f'{shortest} has {positions[shortest] - 1} modules on its line: it cannot be cut into {blocks} blocks'
        )


def _check_sizes(positions: Mapping[str, int], sizes: Mapping[str, Sequence[int]]) -> None:
    for name, count in positions.items():
        if len(sizes.get(name, ())) != count - 1 or min(sizes[name]) < 0 or sum(sizes[name]) <= 0:
            raise SnnetError(f'{name} needs a size for each of its {count - 1} modules, not {sizes.get(name)}')


def _infeasible(failed: list[tuple[str, list[int]]], blocks: int, epsilon: float) -> str:
    """Says which networks miss the size limit, and by how much even their best partition does."""
    parts = []
    for name, totals in failed:
        largest = _smallest_largest(totals, blocks)
        parts.append(f'{name} (epsilon above {largest * blocks / totals[-1] - 1:.3g})')
    return (
        f'no cut into {blocks} blocks keeps every block below {1 + epsilon:g}/{blocks} of its network: '
        f'larger ones are needed by {", ".join(parts)}; raise epsilon or measure size differently'
    )


def _smallest_largest(totals: Sequence[int], blocks: int) -> int:
    """The smallest possible size of the largest of K blocks of one network, from its running totals."""
    best = list(totals)
    for k in range(1, blocks):
        best = [
            min((max(best[x], totals[y] - totals[x]) for x in range(k, y)), default=totals[-1] + 1)
            for y in range(len(totals))
        ]
    return best[-1]
