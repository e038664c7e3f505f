"""What choosing a stitch costs: against the plain network, against repeating one stitch, and in compilations.

    python benchmarks/switching.py
    python benchmarks/switching.py --anchors deit_tiny,deit_small --img-size 96 --pairs 300

Calls are interleaved in random order within a round, so that all meet the same noise. The script prints medians of the
ratios within a round and their 95 % interval (by order statistics). A call that follows another one finds its weights
outside the caches, so switching is compared with switching among plain networks. Blocks are compiled one by one. If
anything compiles after the warm-up, the run ends with an error.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch._dynamo.utils import counters

import snnet
from snnet.profiling.stopwatch import synchronize


def times(calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each call in every round."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for number in range(rounds + 5):
        random.Random(number).shuffle(order)
        for name in order:
            synchronize(device)
            begin = time.perf_counter()
            calls[name]()
            synchronize(device)
            if number >= 5:
                found[name].append(1e3 * (time.perf_counter() - begin))
    return found


def ratio(found: dict[str, list[float]], name: str, base: str) -> str:
    """Median ratio of two calls within a round, and its 95 % interval."""
    ratios = sorted(a / b for a, b in zip(found[name], found[base], strict=True))
    half = 0.98 * math.sqrt(len(ratios))
    low, high = (ratios[round((len(ratios) - 1) / 2 + way * half)] for way in (-1, 1))
    return f'{statistics.median(ratios):.4f} ({low:.4f} to {high:.4f})'


def against_plain(net: snnet.StitchableNet, images: Tensor, rounds: int) -> None:
    """Prints what an anchor costs through the net, against timm's network of the same blocks."""
    for index in range(len(net.anchors)):
        model = net.anchor(index).model
        calls = {
            'timm': lambda model=model: model(images),
            'timm again': lambda model=model: model(images),
            'net': lambda index=index: net(images, stitch=index),
        }
        found = times(calls, rounds, images.device)
        ms = statistics.median(found['timm'])
        print(f'{net.anchor(index).name}: {ms:.3f} ms; the net takes {ratio(found, "net", "timm")} times as long,')
        print(f'  and the same network once more {ratio(found, "timm again", "timm")}', flush=True)


def switching(calls: Sequence[Callable[[], object]], rounds: int, device: torch.device, what: str) -> None:
    """Prints what a call costs after another one, against the same call repeated."""
    other: list[float] = []
    same: list[float] = []
    for call in random.Random(0).choices(calls, k=rounds):
        synchronize(device)
        for spent in (other, same):
            begin = time.perf_counter()
            call()
            synchronize(device)
            spent.append(1e3 * (time.perf_counter() - begin))
    print(f'{what}: {ratio({"other": other, "same": same}, "other", "same")} times as long as once more', flush=True)


def all_ways(net: snnet.StitchableNet, images: Tensor, rounds: int, what: str) -> None:
    """Prints the cost of another stitch at every call, beside that of another plain network."""

    def active(stitch: int) -> None:
        net.set_stitch(stitch)
        net(images)

    anchors, ids = range(len(net.anchors)), range(len(net.stitches))
    switching([partial(net.anchor(i).model, images) for i in anchors], rounds, images.device, f'{what}, timm networks')
    switching([partial(net, images, stitch=i) for i in anchors], rounds, images.device, f'{what}, anchors')
    switching([partial(net, images, stitch=i) for i in ids], rounds, images.device, f'{what}, stitch=')
    switching([partial(active, i) for i in ids], rounds, images.device, f'{what}, set_stitch')


def main() -> None:
    """Prints all of it."""
    parser = argparse.ArgumentParser(description='The cost of choosing a stitch.')
    parser.add_argument('--anchors', default='test_vit,test_vit2')
    parser.add_argument('--img-size', type=int)
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--backend', default='inductor', help='of torch.compile')
    parser.add_argument('--pairs', type=int, default=1000, help='rounds')
    parser.add_argument('--skip-compile', action='store_true')
    args = parser.parse_args()
    torch.manual_seed(0)
    net = snnet.create_stitchable_net(args.anchors, pretrained=False, img_size=args.img_size).eval().to(args.device)
    images = torch.randn(args.batch, *net.input_size, device=args.device)
    with torch.inference_mode():
        against_plain(net, images, args.pairs)
        all_ways(net, images, args.pairs, 'eager')
        if args.skip_compile:
            return
        begin = time.perf_counter()
        graphs = snnet.warm_up(snnet.compile_blocks(net, args.backend), images)
        print(f'{graphs} graphs by {args.backend} in {time.perf_counter() - begin:.0f} s', flush=True)
        before = counters['stats']['unique_graphs']
        with torch.compiler.set_stance('fail_on_recompile'):
            all_ways(net, images, args.pairs, 'compiled')
        print(f'{counters["stats"]["unique_graphs"] - before} compilations after the warm-up')


if __name__ == '__main__':
    main()
