"""Combinations of blocks, grown stage by stage in arrays: all of them, or the most promising ones with a bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Combinations:
    """Combinations that fit.

    Attributes:
        choices: index of the variant at each stage (combinations, K).
        costs: FLOPs and parameters (combinations, 2).
        scores: mean over the joins (combinations,).
        bound: the highest score that anything dropped on the way could have reached (if grown by cost: minus the
            smallest factor by which it exceeds the limits); None if nothing was dropped.
    """

    choices: np.ndarray
    costs: np.ndarray
    scores: np.ndarray
    bound: float | None


@dataclass(frozen=True, eq=False)
class _Beginnings:
    """The first stages of combinations; `taken` has a bit per equivalence set, `distinct` counts networks."""

    choices: np.ndarray  # (beginnings, stages so far)
    costs: np.ndarray  # (beginnings, 2)
    scores: np.ndarray  # (beginnings,)
    taken: np.ndarray  # (beginnings,)
    distinct: np.ndarray  # (beginnings,)

    def select(self, which: np.ndarray) -> _Beginnings:
        return _Beginnings(*(values[which] for values in vars(self).values()))


def grow_combinations(
    costs: np.ndarray,
    joins: np.ndarray,
    scores: np.ndarray,
    sets: np.ndarray,
    network_of: np.ndarray,
    limits: np.ndarray,
    networks: int,
    width: int,
    by_cost: bool = False,
) -> Combinations:
    """Combinations of one variant of a network per stage that keep the rules, within limits (Eq. 8 to 11).

    Args:
        costs: of the blocks (K, V, 2); inf forbids.
        joins: costs between stages (K - 1, V, V, 2); inf forbids.
        scores: of the joins (K - 1, V, V).
        sets: equivalence set of each block (K, V); a combination holds each set once (Eq. 10).
        network_of: index of the network of each variant (V,).
        limits: of the two costs (2,).
        networks: smallest number of different networks in a combination.
        width: how many beginnings are kept after each stage but the last.
        by_cost: ignore the limits, and prefer what exceeds them by the smallest factor.
    """
    stages, count = sets.shape
    cheapest, highest = _remaining(costs, joins, scores)
    bits = np.left_shift(1, sets.astype(np.int64))
    ones = np.ones(count, dtype=np.int64)
    now = _Beginnings(np.arange(count)[:, None], costs[0], np.zeros(count), bits[0], ones)
    dropped: list[float] = []
    for k in range(1, stages):
        last = now.choices[:, -1]
        cost = now.costs[:, None] + costs[k] + joins[k - 1][last]  # (beginnings, V, 2)
        score = now.scores[:, None] + scores[k - 1][last]  # (beginnings, V)
        distinct = now.distinct[:, None] + (network_of[now.choices][:, :, None] != network_of).all(1)  # (beginnings, V)
        least = cost + cheapest[k]  # (beginnings, V, 2)
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
            dropped.append(float(promise[order[width]]))
            now = now.select(order[:width])
    bound = max(dropped, default=None)
    if bound is not None and not by_cost:
        bound /= stages - 1
    return Combinations(now.choices, now.costs, now.scores / (stages - 1), bound)


def _remaining(costs: np.ndarray, joins: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least of each cost (K, V, 2) and the highest sum of scores (K, V) among all that can follow each block."""
    cheapest, highest = np.zeros(costs.shape), np.zeros(costs.shape[:2])
    for k in reversed(range(len(joins))):
        cheapest[k] = (joins[k] + costs[k + 1] + cheapest[k + 1]).min(1)
        possible = np.isfinite(joins[k]).all(-1)
        highest[k] = np.where(possible, scores[k] + highest[k + 1], -np.inf).max(1)
    return cheapest, highest
