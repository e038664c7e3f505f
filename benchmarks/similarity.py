"""Similarity of all boundaries of a zoo: one matrix product per batch against pair by pair, in one run.

    python benchmarks/similarity.py --boundaries 450 --width 512                  (pooled features)
    python benchmarks/similarity.py --boundaries 450 --width 50176 --wide 20      (features of 256 x 14 x 14)

Both ways get the same random features of one batch; how the networks run does not matter here. The straightforward
way computes biased CKA of every pair from its two feature matrices, as ||Y'X|| or, where features outnumber images,
from their Gram matrices; it is timed on `--sample` pairs drawn at random, and scaled to all of them. Ours is
`snnet.reassembly`'s: one Gram matrix per boundary, and one product of all of them. With `--wide N`, N different
feature matrices stand for all boundaries, one after the other, so that they fit in memory. The script prints seconds
per batch, the median of the ratios, and the largest difference of the two ways' biased CKA on the sampled pairs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from snnet.reassembly.cka import HsicSums, gram

Pairs = list[tuple[int, int]]


def straightforward(features: Sequence[Tensor], pairs: Pairs) -> list[float]:
    """Biased CKA of some pairs, each from its two feature matrices."""
    values = []
    for i, j in pairs:
        x, y = (f - f.mean(0) for f in (features[i % len(features)], features[j % len(features)]))
        if x.shape[1] > len(x):
            k, left = x @ x.T, y @ y.T
            values.append(float((k * left).sum() / (k.norm() * left.norm())))
        else:
            values.append(float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())))
    return values


def ours(features: Sequence[Tensor], boundaries: int, estimator: str) -> Tensor:
    """CKA of all boundaries."""
    sums = HsicSums([''] * boundaries, estimator)
    sums.add(torch.stack([gram(features[i % len(features)]) for i in range(boundaries)]))
    return sums.cka()


def main() -> None:
    """Times both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--boundaries', type=int, default=450)
    parser.add_argument('--width', type=int, default=512, help='features per image')
    parser.add_argument('--wide', type=int, default=0, help='different feature matrices (0: one per boundary)')
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--sample', type=int, default=500, help='pairs that the straightforward way is timed on')
    parser.add_argument('--pairs', type=int, default=3, help='how often both ways are timed')
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(args.batch, args.width, generator=generator)
    count = args.wide or args.boundaries
    features = [common + 2 * torch.randn(args.batch, args.width, generator=generator) for _ in range(count)]
    drawn = np.random.default_rng(0).integers(0, args.boundaries, (args.sample, 2))
    sample: Pairs = [(int(i), int(j)) for i, j in drawn]
    every = args.boundaries * (args.boundaries + 1) // 2
    slow, fast, ratios = [], [], []
    for _ in range(args.pairs):
        started = time.perf_counter()
        reference = straightforward(features, sample)
        slow.append((time.perf_counter() - started) * every / args.sample)
        started = time.perf_counter()
        ours(features, args.boundaries, 'unbiased')
        fast.append(time.perf_counter() - started)
        ratios.append(slow[-1] / fast[-1])
    matrix = ours(features, args.boundaries, 'biased')
    off = max(abs(float(matrix[pair]) - value) for pair, value in zip(sample, reference, strict=True))
    print(
        f'{args.boundaries} boundaries of {args.width} features, {args.batch} images, {torch.get_num_threads()} threads'
    )
    print(f'pair by pair    {statistics.median(slow):10.3f} s a batch ({args.sample} of {every} pairs timed)')
    print(f'one product     {statistics.median(fast):10.3f} s a batch')
    print(f'median ratio    {statistics.median(ratios):10.1f}')
    print(f'largest difference of biased CKA {off:.1e}')


if __name__ == '__main__':
    main()
