"""Combinations of blocks, grown stage by stage in arrays: all of them, or the most promising with a bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Grown:
    """Combinations that fit.

    Attributes:
        choices: index of the network at each stage (combinations, K).
        costs: (combinations, 2).
        scores: mean over the seams (combinations,).
        bound: of what was given up on the way, the highest score possible (where grown by cost: minus the smallest
            factor by which limits are exceeded); None where nothing was.
    """

    choices: np.ndarray
    costs: np.ndarray
    scores: np.ndarray
    bound: float | None


@dataclass(frozen=True, eq=False)
class _Beginnings:
    """The first stages of combinations; `taken` has a bit for each equivalence set, `distinct` counts networks."""

    choices: np.ndarray
    costs: np.ndarray
    scores: np.ndarray
    taken: np.ndarray
    distinct: np.ndarray

    def pick(self, which: np.ndarray) -> _Beginnings:
        return _Beginnings(*(values[which] for values in vars(self).values()))


def grow(
    costs: np.ndarray,
    seams: np.ndarray,
    scores: np.ndarray,
    sets: np.ndarray,
    limits: np.ndarray,
    networks: int,
    width: int,
    by_cost: bool = False,
) -> Grown:
    """Combinations of one network a stage that keep the rules, within limits.

    Args:
        costs: of the blocks (K, N, 2).
        seams: costs between stages (K - 1, N, N, 2); inf forbids.
        scores: of the seams (K - 1, N, N).
        sets: equivalence set of each block (K, N); a combination holds each set once (Eq. 10).
        limits: of the two costs.
        networks: that a combination has at least.
        width: how many beginnings go on from a stage that is not the last.
        by_cost: leave the limits out, and prefer what exceeds them by the smallest factor.
    """
    stages, zoo = sets.shape
    cheapest, highest = _to_go(costs, seams, scores)
    bits = np.left_shift(1, sets.astype(np.int64))
    every = np.arange(zoo)
    now = _Beginnings(every[:, None], costs[0], np.zeros(zoo), bits[0], np.ones(zoo, dtype=np.int64))
    given_up: float | None = None
    for k in range(1, stages):
        last = now.choices[:, -1]
        cost = now.costs[:, None] + costs[k] + seams[k - 1][last]
        score = now.scores[:, None] + scores[k - 1][last]
        distinct = now.distinct[:, None] + (now.choices[:, :, None] != every).all(1)
        least = cost + cheapest[k]
        allowed = (now.taken[:, None] & bits[k]) == 0
        allowed &= distinct + (stages - 1 - k) >= networks
        allowed &= np.isfinite(least).all(-1) & (by_cost | (least <= limits).all(-1))
        old, new = np.nonzero(allowed)
        choices = np.concatenate([now.choices[old], new[:, None]], 1)
        taken = now.taken[old] | bits[k, new]
        now = _Beginnings(choices, cost[old, new], score[old, new], taken, distinct[old, new])
        if k < stages - 1 and len(new) > width:
            promise = -(least[old, new] / limits).max(1) if by_cost else now.scores + highest[k, new]
            order = np.argsort(-promise, kind='stable')
            given_up = max(float(promise[order[width]]), -np.inf if given_up is None else given_up)
            now = now.pick(order[:width])
    bound = given_up if given_up is None or by_cost else given_up / (stages - 1)
    return Grown(now.choices, now.costs, now.scores / (stages - 1), bound)


def _to_go(costs: np.ndarray, seams: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Behind each block: the least of each cost (K, N, 2), and the highest sum of scores (K, N), that can follow."""
    cheapest, highest = np.zeros(costs.shape), np.zeros(costs.shape[:2])
    for k in reversed(range(len(seams))):
        cheapest[k] = (seams[k] + costs[k + 1] + cheapest[k + 1]).min(1)
        possible = np.isfinite(seams[k]).all(-1)
        highest[k] = np.where(possible, scores[k] + highest[k + 1], -np.inf).max(1)
    return cheapest, highest
