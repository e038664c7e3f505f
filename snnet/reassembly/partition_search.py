"""Searches for a partition with a large objective J: exact steps in turn, swaps of centers, the paper's algorithm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .dynamic_program import DynamicProgram

GAIN = 1e-10
"""Increases of J below this are rounding."""

_ITERATIONS = 100
"""Limit for the published algorithm."""


@dataclass(frozen=True)
class IndexedPartition:
    """A partition by indices, as the searches handle it.

    Attributes:
        cuts: (networks, K + 1) rows of the similarity matrix.
        sets: (networks x K) index of the set of each block.
        centers: (K, 2) rows where the center of each set starts and stops.
        objective: J (Eq. 2).
    """

    cuts: np.ndarray
    sets: np.ndarray
    centers: np.ndarray
    objective: float


def alternate(program: DynamicProgram, free: bool, random: np.random.Generator) -> IndexedPartition:
    """Alternates dynamic program and medoids from a random start until neither increases J.

    First all networks are cut again, even those that own a center. If J does not grow, the networks that own centers
    keep them, which ensures that J cannot fall. If it does not grow then either, the search has converged.

    Args:
        program: of the zoo.
        free: whether a block may join any set, or block k of each network belongs to set k.
        random: draws the start.
    """
    return _climb(program, _random_start(program, free, random), free)


def swap_centers(program: DynamicProgram, state: IndexedPartition, free: bool) -> IndexedPartition:
    """Replaces single centers by any block, each time with the best partition for it, until no swap increases J."""
    swaps = [(k, block) for k in range(program.count) for block in zip(program.start, program.stop, strict=True)]
    improved = True
    while improved:
        improved = False
        for k, block in swaps:
            centers = state.centers.copy()
            centers[k] = block
            values = block_values(program, centers, free, pinned=True)
            if program.best_sum(values) <= state.objective + GAIN:
                continue
            new = settle(program, program.best(values)[0], centers, free)
            if new is not None and new.objective > state.objective + GAIN:
                state, improved = _climb(program, new, free), True
    return state


def published_search(program: DynamicProgram, free: bool, random: np.random.Generator) -> IndexedPartition:
    """One run of the paper's Algorithm 1: swap layers, move centers, assign blocks, until J stops growing.

    A set that loses all its blocks keeps its center, as in K-means.
    """
    state = _random_start(program, free, random)
    cuts, sets, centers, best = state.cuts.copy(), state.sets, state.centers.copy(), -np.inf
    for _ in range(_ITERATIONS):
        swap_layers(program, cuts, sets.reshape(len(cuts), -1), centers)
        starts, stops = cuts[:, :-1].ravel(), cuts[:, 1:].ravel()  # (networks x K)
        functional = program.functional(cuts)  # (networks x K, networks x K)
        for j in np.unique(sets):
            medoid = np.where(sets == j, (sets == j) @ functional, -np.inf).argmax()
            centers[j] = starts[medoid], stops[medoid]
        to_centers = program.to(centers[:, 0], centers[:, 1], cuts)  # (K, networks x K)
        if free:
            sets = to_centers.argmax(0)
        objective = float(to_centers[sets, np.arange(len(sets))].sum())
        if objective <= best + GAIN:
            break
        best, state = objective, IndexedPartition(cuts.copy(), sets, centers.copy(), objective)
    return state


def swap_layers(program: DynamicProgram, cuts: np.ndarray, sets: np.ndarray, centers: np.ndarray) -> None:
    """Moves each cut by one module where that increases J most (Eq. 6 and 7); sets and centers stay.

    Args:
        program: of the zoo.
        cuts: (networks, K + 1), changed in place.
        sets: (networks, K).
        centers: (K, 2).
    """

    def value(start: int, stop: int, which: int) -> float:
        if (start, stop) not in program.allowed:
            return -np.inf
        return float(program.s[start, centers[which, 0]] + program.s[stop, centers[which, 1]])

    for row, which in zip(cuts, sets, strict=True):
        for k in range(1, len(row) - 1):
            before, cut, after = row[k - 1 : k + 2].tolist()
            moves = [value(before, c, which[k - 1]) + value(c, after, which[k]) for c in (cut, cut + 1, cut - 1)]
            row[k] = (cut, cut + 1, cut - 1)[int(np.argmax(moves))]


def block_values(program: DynamicProgram, centers: np.ndarray, free: bool, pinned: bool) -> np.ndarray:
    """Value of every allowed block as the k-th of its network, given the centers (Eq. 3).

    Args:
        program: of the zoo.
        centers: (K, 2).
        free: a block counts its most similar center, instead of the k-th.
        pinned: forbid every block that overlaps a center of its own network without being that center, so that each
            network keeps the centers that it owns.

    Returns:
        (K, blocks); -inf where forbidden.
    """
    inputs: np.ndarray = program.s[np.ix_(centers[:, 0], program.start)]
    outputs: np.ndarray = program.s[np.ix_(centers[:, 1], program.stop)]
    values: np.ndarray = inputs + outputs  # (K, blocks)
    if free:
        values = np.repeat(values.max(0)[None], program.count, 0)
    if pinned:
        for k, (start, stop) in enumerate(centers):
            same = (program.start == start) & (program.stop == stop)
            values[:, (program.start < stop) & (program.stop > start) & ~same] = -np.inf
            if not free:
                others = np.arange(program.count) != k
                values[others] = np.where(same, -np.inf, values[others])
    return values


def settle(program: DynamicProgram, cuts: np.ndarray, centers: np.ndarray, free: bool) -> IndexedPartition | None:
    """Alternates assignment (Eq. 3) and medoids (Eq. 4) for given cuts until J stops growing.

    Returns:
        The partition, or None if a set would be empty.
    """
    functional = program.functional(cuts)  # (networks x K, networks x K)
    stages = np.tile(np.arange(program.count), len(cuts))
    sets = program.to(centers[:, 0], centers[:, 1], cuts).argmax(0) if free else stages
    same = (cuts[:, :-1].ravel() == centers[:, :1]) & (cuts[:, 1:].ravel() == centers[:, 1:])  # (K, networks x K)
    owner, own = np.nonzero(same)
    sets[own] = owner if free else sets[own]  # a center stays in its set, however similar it is to another one
    best = -np.inf
    while True:
        member = sets == np.arange(program.count)[:, None]  # (K, networks x K)
        if not member.any(1).all():
            return None
        medoids = np.where(member, member @ functional, -np.inf).argmax(1)  # (K,)
        objective = float(functional[medoids[sets], np.arange(len(sets))].sum())
        if objective <= best + GAIN:
            break
        best, chosen, held = objective, sets, medoids
        if free:
            sets = functional[medoids].argmax(0)
            sets[medoids] = np.arange(program.count)
    rows = np.stack([cuts[:, :-1].ravel()[held], cuts[:, 1:].ravel()[held]], 1)
    return IndexedPartition(cuts, chosen, rows, best)


def _climb(program: DynamicProgram, state: IndexedPartition, free: bool) -> IndexedPartition:
    while True:
        for pinned in (False, True):
            values = block_values(program, state.centers, free, pinned)
            new = settle(program, program.best(values)[0], state.centers, free)
            if new is not None and new.objective > state.objective + GAIN:
                state = new
                break
        else:
            return state


def _random_start(program: DynamicProgram, free: bool, random: np.random.Generator) -> IndexedPartition:
    """A random partition below the size limit; centers are the blocks of one network or, where free, any of them."""
    cuts, _ = program.best(random.random((program.count, len(program.start))))
    blocks = np.arange(len(cuts) * program.count).reshape(len(cuts), -1)
    chosen = blocks[random.integers(len(cuts))]
    if free and random.random() < 0.5:
        chosen = random.choice(blocks.ravel(), program.count, replace=False)
    centers = np.stack([cuts[:, :-1].ravel()[chosen], cuts[:, 1:].ravel()[chosen]], 1)
    state = settle(program, cuts, centers, free)
    assert state is not None  # the centers are blocks of these cuts, and stay in their sets
    return state
