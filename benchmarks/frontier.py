"""What evaluating only the frontier could save, by successive halving on paired hits: a simulation.

    python benchmarks/frontier.py

Images come in a random order. After 97, 195, 390, ... of 50,000 images, a stitch is dropped where a cheaper one is
better on the same images, by a one-sided sign test, with an error of 1 % over all pairs and rounds together. With a
tolerance, it is enough that the cheaper one is not worse by more than so many points. Hits are drawn with the
published accuracies of the 71 stitches of DeiT-Ti/S/B. What two stitches get right is correlated: an image has a
difficulty, with a weight that decides how many images only one of two neighbors gets right. Printed are the FLOPs
spent, as a share of those of a full evaluation, how many stitches are left, and what the loss is at the worst
budget.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

PUBLISHED = Path(__file__).parents[1] / 'tests' / 'data' / 'published' / 'deit_ti_s_b.json'
IMAGES = 50_000
ROUNDS = [IMAGES >> k for k in range(9, -1, -1)]
Array = np.ndarray[Any, Any]


def draw_hits(accuracies: Array, difficulty: float, seed: int) -> Array:
    """Hits (stitches, images), 0 or 1: an image is right where difficulty and luck stay below a stitch's threshold."""
    draw = np.random.default_rng(seed)
    common, own = draw.standard_normal(IMAGES), draw.standard_normal((len(accuracies), IMAGES))
    thresholds = np.array([NormalDist().inv_cdf(value) for value in accuracies])
    score = math.sqrt(difficulty) * common + math.sqrt(1 - difficulty) * own
    return (score < thresholds[:, None]).astype(np.float32)


def best_within(costs: Array, accuracies: Array, kept: Array) -> Array:
    """For the cost of every stitch as a budget, the best accuracy of those that were kept."""
    return np.array([max(accuracies[kept & (costs <= cost)], default=0.0) for cost in costs])


def halve(hits: Array, costs: Array, tolerance: float) -> tuple[float, Array]:
    """Share of the FLOPs spent, and which stitches are left."""
    count = len(costs)
    cheaper = (costs[:, None] < costs) | ((costs[:, None] == costs) & np.tri(count, k=-1, dtype=bool).T)
    level = -NormalDist().inv_cdf(0.01 / (count * (count - 1) / 2 * len(ROUNDS)))
    left, spent, done = np.ones(count, dtype=bool), 0.0, 0
    wins = np.zeros((count, count))  # (t, s): images that only t gets right
    for images in ROUNDS:
        part = hits[:, done:images]
        wins += part @ (1 - part).T
        spent += float(costs[left].sum()) * (images - done)
        done = images
        lead = wins - wins.T + tolerance * images
        sure = lead > level * np.sqrt(np.maximum(wins + wins.T, 1))
        left = left & ~(sure & cheaper & left[:, None]).any(axis=0)
    return spent / float(costs.sum() * IMAGES), left


def main() -> None:
    """Prints a row for each tolerance and correlation."""
    parser = argparse.ArgumentParser(description='What successive halving on paired hits would save.')
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--tolerances', type=float, nargs='+', default=[0.0, 0.25, 0.5, 1.0], help='in points')
    args = parser.parse_args()
    rows = json.loads(PUBLISHED.read_text())['configs']
    costs = np.array([row['flops'] for row in rows], dtype=float)
    accuracies = np.array([row['acc1'] for row in rows]) / 100
    for difficulty in (0.9, 0.97, 0.99):
        for tolerance in args.tolerances:
            shares, losses, kept = [], [], []
            for seed in range(args.seeds):
                hits = draw_hits(accuracies, difficulty, seed)
                share, left = halve(hits, costs, tolerance / 100)
                full, everyone = hits.mean(1), np.ones(len(costs), dtype=bool)
                best = best_within(costs, full, everyone)
                shares.append(share)
                losses.append(100 * float((best - best_within(costs, full, left)).max()))
                kept.append(int(left.sum()))
            apart = 100 * float(np.abs(hits[40] - hits[41]).mean())
            print(
                f'{apart:4.1f} % of the images right for only one of two neighbors, tolerance {tolerance:g} points: '
                f'{statistics.fmean(shares):.2f} of the FLOPs, {statistics.fmean(kept):.1f} of {len(costs)} stitches '
                f'kept, worst loss {max(losses):.2f} points',
                flush=True,
            )


if __name__ == '__main__':
    main()
