"""Least-squares initialization: sums against the straightforward way, in time and memory, in one run.

    python benchmarks/initialize.py --images 100 --pairs 3

The straightforward way keeps all features of all images and calls a float32 pseudo-inverse for each position, then
averages the solutions that share a layer. Both get the same images and the same networks (DeiT-Ti/S/B without
weights: time and memory do not depend on them). Memory is the peak above what the process holds before, of a process
of its own. Both ways are repeated in pairs; the median of the ratios is printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch

import snnet
from snnet.calibration.initialize import initialize

ANCHORS = 'deit_tiny,deit_small,deit_base'
Way = Callable[[snnet.StitchableNet, torch.Tensor], None]


@torch.no_grad()
def straightforward(net: snnet.StitchableNet, images: torch.Tensor) -> None:
    """All features kept, one float32 pseudo-inverse a position, solutions averaged over a shared layer."""
    features = {}
    for anchor in map(net.anchor, range(len(net.anchors))):
        x, kept = anchor.run_stem(images), []
        for module in anchor.line():
            kept.append(x.reshape(-1, x.shape[-1]))
            x = module(x)
        features[anchor.name] = [*kept, x.reshape(-1, x.shape[-1])]
    weights: dict[int, list[torch.Tensor]] = {}
    for stitch in net.stitches:
        for layer, front, end in zip(stitch.layers, stitch.legs, stitch.legs[1:], strict=False):
            a, b = features[front.anchor][front.stop or 0], features[end.anchor][end.start or 0]
            weights.setdefault(layer, []).append(torch.linalg.pinv(a) @ b)
    for layer, found in weights.items():
        net.layer(layer).weight.copy_(torch.stack(found).mean(0).T)


def ours(net: snnet.StitchableNet, images: torch.Tensor) -> None:
    """Float64 sums, a joint fit a layer."""
    initialize(net, [images], samples=len(images))


def measure(
    way: Callable[[snnet.StitchableNet, torch.Tensor], None], images: int, results: multiprocessing.Queue
) -> None:
    """Seconds and peak megabytes of one way."""
    torch.manual_seed(0)
    net = snnet.create_stitchable_net(ANCHORS, pretrained=False).eval()
    batch = torch.randn(images, 3, 224, 224)
    with torch.no_grad():
        net(batch[:1], stitch=2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    way(net, batch)
    seconds = time.perf_counter() - begin
    results.put((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def main() -> None:
    """Prints both ways and their ratios."""
    parser = argparse.ArgumentParser(description='Least squares from sums against the straightforward way.')
    parser.add_argument('--images', type=int, default=100)
    parser.add_argument('--pairs', type=int, default=3, help='repetitions of both ways')
    args = parser.parse_args()
    context = multiprocessing.get_context('spawn')
    times, memories = [], []
    print(f'{ANCHORS}, {args.images} images, {torch.get_num_threads()} threads, torch {torch.__version__}')
    for pair in range(args.pairs):
        found = []
        for way in (straightforward, ours):
            results = context.Queue()
            process = context.Process(target=measure, args=(way, args.images, results))
            process.start()
            found.append(results.get())
            process.join()
            print(f'pair {pair}: {way.__name__:>15}  {found[-1][0]:7.1f} s  {found[-1][1]:7.0f} MB', flush=True)
        times.append(found[0][0] / found[1][0])
        memories.append(found[0][1] / found[1][1])
    faster, smaller = statistics.median(times), statistics.median(memories)
    print(f'medians of the ratios: {faster:.2f} times as fast, {smaller:.2f} times less memory')


if __name__ == '__main__':
    main()
