"""Partition and assembly of a zoo: exact steps against the published algorithm, tables against a loop, in one run.

    python benchmarks/partition.py --networks 24 --blocks 4

The zoo is made up: lines of 8 to 27 modules whose boundaries drift through a common space with noise, as features of
trained networks do. Both partition methods get the same similarities, sizes and limit. The script prints seconds and
the objective J that each reaches (at most 2 per block). All assemblies are then costed from tables, and by a loop
over combinations that adds up Python numbers, timed on `--sample` of them and scaled.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np

from snnet.reassembly import AssemblyTables, Similarity, partition_zoo, rank_assemblies


def made_up(networks: int, noise: float) -> Similarity:
    """A zoo of lines of 8 to 27 modules."""
    random = np.random.default_rng(0)
    lengths = random.integers(8, 28, networks)
    boundaries = tuple((f'net{i}', p) for i, length in enumerate(lengths) for p in range(length + 1))
    depth = np.concatenate([np.linspace(0, 1, length + 1) for length in lengths])
    rows = np.exp(-8 * (depth[:, None] - np.linspace(0, 1, 12)) ** 2)
    rows = rows + noise * random.normal(size=rows.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Similarity(boundaries, rows @ rows.T)


def loop(tables: AssemblyTables, budget: float, sample: int) -> float:
    """The best score of the first `sample` combinations within a budget in FLOPs, by a loop."""
    costs, joins, scores = tables.costs[..., 0].tolist(), tables.joins[..., 0].tolist(), tables.scores.tolist()
    stages, networks = tables.costs.shape[:2]
    best = -1.0
    for choice in itertools.islice(itertools.product(range(networks), repeat=stages), sample):
        cost = sum(costs[k][i] for k, i in enumerate(choice))
        cost += sum(joins[k][a][b] for k, (a, b) in enumerate(itertools.pairwise(choice)))
        if cost <= budget:
            score = sum(scores[k][a][b] for k, (a, b) in enumerate(itertools.pairwise(choice))) / (stages - 1)
            best = max(best, score)
    return best


def main() -> None:
    """Times both ways of both steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', type=int, default=24)
    parser.add_argument('--blocks', type=int, default=4)
    parser.add_argument('--epsilon', type=float, default=0.6)
    parser.add_argument('--noise', type=float, default=0.25)
    parser.add_argument('--sample', type=int, default=30_000)
    args = parser.parse_args()
    similarity = made_up(args.networks, args.noise)
    sizes = {name: (1,) * (positions - 1) for name, positions in similarity.positions.items()}
    for sets in ('free', 'stage'):
        for method in ('published', 'alternating'):
            started = time.perf_counter()
            found = partition_zoo(similarity, args.blocks, sizes, epsilon=args.epsilon, sets=sets, method=method)
            seconds = time.perf_counter() - started
            print(f'partition, sets {sets:5}  {method:11}  {seconds:6.2f} s  J = {found.objective:.3f}')
    random = np.random.default_rng(1)
    shape = (args.blocks - 1, args.networks, args.networks)
    joins = random.integers(1, 50, (*shape, 2)).astype(float)
    costs = random.integers(1, 1000, (args.blocks, args.networks, 2)).astype(float)
    tables, budget = AssemblyTables(found, costs, joins, random.random(shape)), 500.0 * args.blocks
    started = time.perf_counter()
    ranking = rank_assemblies(tables, flops=budget, networks=1)
    fast = time.perf_counter() - started
    total = args.networks**args.blocks
    started = time.perf_counter()
    loop(tables, budget, args.sample)
    slow = (time.perf_counter() - started) * total / min(args.sample, total)
    print(f'{total} assemblies, {ranking.feasible} of which fit: tables {fast:.2f} s, loop {slow:.2f} s')


if __name__ == '__main__':
    main()
