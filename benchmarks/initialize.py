"""Least-squares initialization: sums against the straightforward way, in time and memory, in one run.

    python benchmarks/initialize.py --images 100 --pairs 3

The straightforward way keeps all features of all images and calls a float32 pseudo-inverse for each position, then
averages the solutions that share a layer. Beside them stands their bound, the forward passes of the anchors alone. All
get the same images and the same networks (DeiT-Ti/S/B without weights: time and memory do not depend on them). Times
are of the processor, so that other work on the machine counts less. Memory is the peak above what the process holds
before, of a process of its own. The ways are repeated in turn; the medians of the ratios are printed.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch

import snnet
from snnet.calibration.initialize import CHUNK, initialize

ANCHORS = 'deit_tiny,deit_small,deit_base'
Way = Callable[[snnet.StitchableNet, torch.Tensor], object]


@torch.no_grad()
def straightforward(net: snnet.StitchableNet, images: torch.Tensor, seconds: float = math.inf) -> tuple[int, int]:
    """All features kept, one float32 pseudo-inverse per position, solutions averaged over a shared layer.

    Returns:
        How many positions were solved before the seconds were up, and how many there are.
    """
    begin, features = time.monotonic(), {}
    for anchor in map(net.anchor, range(len(net.anchors))):
        x, kept = anchor.run_stem(images), []
        for module in anchor.line():
            kept.append(x.reshape(-1, x.shape[-1]))
            x = module(x)
        features[anchor.name] = [*kept, x.reshape(-1, x.shape[-1])]
    weights: dict[int, list[torch.Tensor]] = {}
    positions = [
        (layer, features[front.anchor][front.stop or 0], features[end.anchor][end.start or 0])
        for stitch in net.stitches
        for layer, front, end in zip(stitch.layers, stitch.legs, stitch.legs[1:], strict=False)
    ]
    for done, (layer, a, b) in enumerate(positions):
        if time.monotonic() - begin > seconds:
            return done, len(positions)
        weights.setdefault(layer, []).append(torch.linalg.pinv(a) @ b)
    for layer, found in weights.items():
        net.layer(layer).weight.copy_(torch.stack(found).mean(0).T)
    return len(positions), len(positions)


def ours(net: snnet.StitchableNet, images: torch.Tensor) -> None:
    """Float64 sums, a joint fit per layer."""
    initialize(net, [images], samples=len(images))


@torch.no_grad()
def forward_alone(net: snnet.StitchableNet, images: torch.Tensor) -> None:
    """What any way has to do: each anchor runs once over the images."""
    for chunk in images.split(CHUNK):
        for anchor in range(len(net.anchors)):
            net(chunk, stitch=anchor)


def measure(way: Way, images: int, results: multiprocessing.Queue) -> None:
    """Processor seconds and peak megabytes of one way."""
    torch.manual_seed(0)
    net = snnet.create_stitchable_net(ANCHORS, pretrained=False).eval()
    batch = torch.randn(images, 3, 224, 224)
    with torch.no_grad():
        net(batch[:1], stitch=2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    way(net, batch)
    seconds = time.process_time() - begin
    results.put((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def main() -> None:
    """Prints the ways and their ratios."""
    parser = argparse.ArgumentParser(description='Least squares from sums against the straightforward way.')
    parser.add_argument('--images', type=int, default=100)
    parser.add_argument('--pairs', type=int, default=3, help='repetitions of each way')
    parser.add_argument('--skip-straightforward', action='store_true', help='compare with the bound only')
    args = parser.parse_args()
    context = multiprocessing.get_context('spawn')
    ways: list[Way] = [forward_alone, ours] if args.skip_straightforward else [forward_alone, ours, straightforward]
    times: dict[Way, list[float]] = {way: [] for way in ways}
    memories: dict[Way, list[float]] = {way: [] for way in ways}
    print(f'{ANCHORS}, {args.images} images, {torch.get_num_threads()} threads, torch {torch.__version__}')
    for pair in range(args.pairs):
        for way in ways:
            results = context.Queue()
            process = context.Process(target=measure, args=(way, args.images, results))
            process.start()
            seconds, megabytes = results.get()
            process.join()
            times[way].append(seconds)
            memories[way].append(megabytes)
            print(f'pair {pair}: {way.__name__:>15}  {seconds:7.1f} s  {megabytes:7.0f} MB', flush=True)
    bound = statistics.median(a / b for a, b in zip(times[ours], times[forward_alone], strict=True))
    print(f'medians of the ratios: {bound:.2f} times the forward passes alone', end='')
    if args.skip_straightforward:
        print()
        return
    faster = statistics.median(a / b for a, b in zip(times[straightforward], times[ours], strict=True))
    smaller = statistics.median(a / b for a, b in zip(memories[straightforward], memories[ours], strict=True))
    print(f', {faster:.2f} times as fast as the straightforward way, {smaller:.2f} times less memory')


if __name__ == '__main__':
    main()
