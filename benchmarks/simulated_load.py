"""The controller against services that cannot adapt, with published accuracies, over load and shapes of arrivals.

    python benchmarks/simulated_load.py FILE

The file holds `configs`, one stitch per row: cfg_id, flops, acc1, front_anchor, end_anchor. Latency is made up from
FLOPs: a fixed part per batch, and a part per GFLOP and image. There are two machines: 'cpu' (0.5 ms + 1 ms per GFLOP),
where batches gain little, and 'gpu' (4 ms + 0.2 ms per GFLOP), where they gain much. One rule (`SPARED` of
snnet.serve.policy) was tuned on some of these cells with their default seeds; use other seeds to judge it.
The numbers are published per-stitch results of SN-Net (logs in github.com/ziplab/SN-Net).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

from snnet.serve import Choice, Choices, World, draw_arrivals
from snnet.serve.arrivals import SHAPES
from snnet.serve.compare_policies import POLICIES, STITCHES, PolicyOutcome, compare_policies, outcome_table
from snnet.serve.plot import draw_loads

MACHINES = {'cpu': (0.0005, 0.001), 'gpu': (0.004, 0.0002)}
"""Seconds per batch, and per GFLOP and image."""


def choices_of(rows: list[dict], machine: str, most: int = 16) -> Choices:
    """Stitches of a file with made-up latencies."""
    batch, flop = MACHINES[machine]
    return Choices(
        Choice(
            row['cfg_id'],
            row['acc1'],
            (0.0, *(batch + flop * row['flops'] / 1e9 * size for size in range(1, most + 1))),
        )
        for row in rows
    )


def hard_budgets(rows: list[dict], low: float, high: float) -> float:
    """Mean top-1 of the best within a budget of FLOPs, drawn log-uniformly between two."""
    best, total, begin = -math.inf, 0.0, low
    for row in sorted(rows, key=lambda row: row['flops']):
        if row['acc1'] > best:
            until = min(max(row['flops'], low), high)
            total += max(best, 0.0) * math.log(until / begin)
            best, begin = row['acc1'], until
    return (total + best * math.log(high / begin)) / math.log(high / low)


def main() -> None:
    """Prints the tables and the controller's time per request, and draws the pictures."""
    parser = argparse.ArgumentParser(description='Simulates a service under load with published accuracies.')
    parser.add_argument('file', type=Path, help='published numbers, stitch by stitch')
    parser.add_argument('--output', type=Path, help='folder for pictures')
    parser.add_argument('--requests', type=int, default=1200, help='of each simulation')
    parser.add_argument('--deadline', type=float, default=0.05, help='seconds from arrival to deadline')
    parser.add_argument('--loads', type=float, nargs='+', default=[0.3, 0.8, 1.5])
    parser.add_argument('--shapes', nargs='+', default=list(SHAPES))
    parser.add_argument('--spread', type=float, default=0.0, help='of the logarithm of the time of a batch')
    parser.add_argument('--seed', type=int, default=2026)
    args = parser.parse_args()
    if not args.file.is_file():
        print(f'skipped: {args.file} is not here')
        return
    rows = json.loads(args.file.read_text())['configs']
    anchors = [row for row in rows if row['stitch'] is None]
    ends = min(row['flops'] for row in anchors), max(row['flops'] for row in anchors)
    for name, known in ((f'{len(rows)} stitches', rows), (f'{len(anchors)} anchors', anchors)):
        print(f'a hard budget for each request: mean top-1 of {name}: {hard_budgets(known, *ends):.2f}')
    for machine in MACHINES:
        stitches, whole = choices_of(rows, machine), choices_of(anchors, machine)
        capacity = stitches.rate(0, args.deadline / 2)
        for shape in args.shapes:
            found = []
            for index, load in enumerate(args.loads):
                seconds = args.requests / (load * capacity)
                moments = draw_arrivals(shape, load * capacity, seconds, args.seed + index, period=40 * args.deadline)
                begin = time.perf_counter()
                world = World(spread=args.spread, seed=args.seed)
                outcomes = compare_policies(stitches, whole, moments, args.deadline, world)
                spent = 1e6 * (time.perf_counter() - begin) / len(moments) / 9  # runs, by bisection
                found += [PolicyOutcome(load, len(moments) / seconds, *outcome) for outcome in outcomes]
                print(f'{machine} {shape} {load}: about {spent:.0f} us per request', flush=True)
            print(outcome_table(found), flush=True)
            if args.output:
                points = {p: [(r.load, r.outcome) for r in found if r.policy == p] for p in POLICIES}
                title = f'{shape}, {machine}, deadline {1000 * args.deadline:g} ms ({STITCHES}: {len(stitches)})'
                print(*draw_loads(points, args.output / f'load_{machine}_{shape}', title))


if __name__ == '__main__':
    main()
