"""Climbs of the objective J of a partition: exact steps in turn, swaps of centers, and the paper's own algorithm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .partition_lines import Lines

GAIN = 1e-10
"""Increases of J below this are rounding."""

_STEPS = 100
"""Iterations of the published algorithm at most."""


@dataclass(frozen=True)
class State:
    """A partition by indices.

    Attributes:
        cuts: (networks, K + 1) rows of the similarity matrix.
        sets: (networks x K) set of each block.
        centers: (K, 2) rows where the center of each set starts and stops.
        objective: J.
    """

    cuts: np.ndarray
    sets: np.ndarray
    centers: np.ndarray
    objective: float


def alternate(lines: Lines, free: bool, random: np.random.Generator) -> State:
    """Dynamic programme and medoid in turn, up to a fixed point, from a random start.

    First all networks are cut afresh, even those that own a center; where J does not grow by that, each of them keeps
    its centers, so that J cannot fall. Where it does not grow then either, the fixed point is reached.
    """
    return _climb(lines, _random_start(lines, free, random), free)


def _climb(lines: Lines, state: State, free: bool) -> State:
    while True:
        for pinned in (False, True):
            new = _settle(lines, lines.best(_values(lines, state.centers, free, pinned))[0], state.centers, free)
            if new is not None and new.objective > state.objective + GAIN:
                state = new
                break
        else:
            return state


def swap_centers(lines: Lines, state: State, free: bool) -> State:
    """Replaces single centers by any block, each time with the best partition for it, until no swap increases J."""
    swaps = [(k, block) for k in range(lines.count) for block in zip(lines.start, lines.stop, strict=True)]
    improved = True
    while improved:
        improved = False
        for k, block in swaps:
            centers = state.centers.copy()
            centers[k] = block
            values = _values(lines, centers, free, pinned=True)
            if lines.best_sum(values) <= state.objective + GAIN:
                continue
            new = _settle(lines, lines.best(values)[0], centers, free)
            if new is not None and new.objective > state.objective + GAIN:
                state, improved = _climb(lines, new, free), True
    return state


def _random_start(lines: Lines, free: bool, random: np.random.Generator) -> State:
    """A random partition below the size limit; centers are the blocks of one network or, where free, any of them."""
    cuts, _ = lines.best(random.random((lines.count, len(lines.start))))
    blocks = np.arange(len(cuts) * lines.count).reshape(len(cuts), -1)
    chosen = blocks[random.integers(len(cuts))]
    if free and random.random() < 0.5:
        chosen = random.choice(blocks.ravel(), lines.count, replace=False)
    centers = np.stack([cuts[:, :-1].ravel()[chosen], cuts[:, 1:].ravel()[chosen]], 1)
    state = _settle(lines, cuts, centers, free)
    assert state is not None  # the centers are blocks of these cuts, and stay in their sets
    return state


def _values(lines: Lines, centers: np.ndarray, free: bool, pinned: bool) -> np.ndarray:
    """Value of every block as the k-th of its network (K, blocks), given the centers (Eq. 3).

    Where pinned, a block that overlaps a center of its own network without being it is forbidden, so that each network
    keeps the centers it owns.
    """
    values = lines.s[np.ix_(centers[:, 0], lines.start)] + lines.s[np.ix_(centers[:, 1], lines.stop)]
    if free:
        values = np.repeat(values.max(0)[None], lines.count, 0)
    if pinned:
        for k, (start, stop) in enumerate(centers):
            same = (lines.start == start) & (lines.stop == stop)
            values[:, (lines.start < stop) & (lines.stop > start) & ~same] = -np.inf
            if not free:
                values[np.arange(lines.count) != k] = np.where(same, -np.inf, values[np.arange(lines.count) != k])
    return values


def _settle(lines: Lines, cuts: np.ndarray, centers: np.ndarray, free: bool) -> State | None:
    """Assignment and medoid in turn, up to a fixed point, for given cuts; None where a set would be empty."""
    functional = lines.functional(cuts)
    stages = np.tile(np.arange(lines.count), len(cuts))
    sets = lines.to(centers[:, 0], centers[:, 1], cuts).argmax(0) if free else stages
    same = (cuts[:, :-1].ravel() == centers[:, :1]) & (cuts[:, 1:].ravel() == centers[:, 1:])
    owner, own = np.nonzero(same)
    sets[own] = owner if free else sets[own]  # a center is in its set, however much it is like another
    best = -np.inf
    while True:
        member = sets == np.arange(lines.count)[:, None]
        if not member.any(1).all():
            return None
        medoids = np.where(member, member @ functional, -np.inf).argmax(1)
        objective = float(functional[medoids[sets], np.arange(len(sets))].sum())
        if objective <= best + GAIN:
            break
        best, chosen, held = objective, sets, medoids
        if free:
            sets = functional[medoids].argmax(0)
            sets[medoids] = np.arange(lines.count)
    rows = np.stack([cuts[:, :-1].ravel()[held], cuts[:, 1:].ravel()[held]], 1)
    return State(cuts, chosen, rows, best)


def published(lines: Lines, free: bool, random: np.random.Generator) -> State:
    """One run of the paper's Algorithm 1: layer swaps, new centers, new assignment, until J grows no more.

    A set that loses all its blocks keeps its center, as in K-means.
    """
    state = _random_start(lines, free, random)
    cuts, sets, centers, best = state.cuts.copy(), state.sets, state.centers.copy(), -np.inf
    for _ in range(_STEPS):
        _swap_layers(lines, cuts, sets.reshape(len(cuts), -1), centers)
        starts, stops = cuts[:, :-1].ravel(), cuts[:, 1:].ravel()
        functional = lines.functional(cuts)
        for j in np.unique(sets):
            medoid = np.where(sets == j, (sets == j) @ functional, -np.inf).argmax()
            centers[j] = starts[medoid], stops[medoid]
        to_centers = lines.to(centers[:, 0], centers[:, 1], cuts)
        if free:
            sets = to_centers.argmax(0)
        objective = float(to_centers[sets, np.arange(len(sets))].sum())
        if objective <= best + GAIN:
            break
        best, state = objective, State(cuts.copy(), sets, centers.copy(), objective)
    return state


def _swap_layers(lines: Lines, cuts: np.ndarray, sets: np.ndarray, centers: np.ndarray) -> None:
    """Moves each cut by one module where that increases J most, in place (Eq. 6 and 7); assignment and centers stay."""

    def value(start: int, stop: int, which: int) -> float:
        if (start, stop) not in lines.allowed:
            return -np.inf
        return lines.s[start, centers[which, 0]] + lines.s[stop, centers[which, 1]]

    for row, which in zip(cuts, sets, strict=True):
        for k in range(1, len(row) - 1):
            before, cut, after = row[k - 1 : k + 2].tolist()
            moves = [value(before, c, which[k - 1]) + value(c, after, which[k]) for c in (cut, cut + 1, cut - 1)]
            row[k] = (cut, cut + 1, cut - 1)[int(np.argmax(moves))]
