"""Blocks compiled one by one against eager, and against torch.compile of the whole net, in one run.

    python benchmarks/compile.py
    python benchmarks/compile.py --anchors deit_tiny,deit_small,deit_base --batch 8 --train --skip-whole

Prints what the first calls cost, the number of graphs, the ratio of the times over random stitches, and what the whole
net as one graph does from the ninth stitch on.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch._dynamo.utils import counters

import snnet
from snnet.net.compile_blocks import compile_blocks, warm_up


def graphs() -> int:
    """Graphs that torch has compiled in this process."""
    return counters['stats']['unique_graphs']


def seconds(net: Callable[..., Tensor], images: Tensor, stitches: list[int], train: bool) -> float:
    """Time of one pass (and backward pass) of each stitch."""
    begin = time.perf_counter()
    for stitch in stitches:
        logits = net(images, stitch=stitch)
        if train:
            logits.sum().backward()
    if images.device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def compare(
    eager: snnet.StitchableNet, compiled: snnet.StitchableNet, images: Tensor, args: argparse.Namespace
) -> None:
    """Prints times and the median ratio over random stitches, each run both ways, one right after the other."""
    pairs = []
    for stitch in random.Random(0).choices(range(len(eager.stitches)), k=args.pairs):
        pairs.append([seconds(net, images, [stitch], args.train) for net in (eager, compiled)])
    slow, fast = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
    low, ratio, high = statistics.quantiles((a / b for a, b in pairs), n=4)
    print(f'{args.pairs} random stitches: eager {slow:.2f} ms, by block {fast:.2f} ms (medians)')
    print(f'by block is {ratio:.2f} times as fast (quartiles {low:.2f} to {high:.2f})', flush=True)


def whole(net: snnet.StitchableNet, images: Tensor, args: argparse.Namespace) -> None:
    """Prints what the first and second call of each of the first ten stitches costs with the net as one graph."""
    compiled = torch.compile(net, backend=args.backend)
    for stitch in range(min(10, len(net.stitches))):
        before = graphs()
        first, second = (seconds(compiled, images, [stitch], args.train) for _ in range(2))
        found = 'compiled' if graphs() > before else 'EAGER, the limit of graphs is reached'
        print(f'whole net, stitch {stitch}: first call {first:.2f} s, second {second:.4f} s, {found}', flush=True)


def main() -> None:
    """Prints costs of first calls, graphs, ratio and the whole net's behavior."""
    parser = argparse.ArgumentParser(description='Blocks compiled one by one against eager and the whole net.')
    parser.add_argument('--anchors', default='test_vit,test_vit2')
    parser.add_argument('--backend', default='inductor')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--train', action='store_true', help='forward and backward pass (default: forward pass)')
    parser.add_argument('--drop-path', type=float, default=0.1)
    parser.add_argument('--amp', action='store_true', help='bfloat16')
    parser.add_argument('--pairs', type=int, default=200, help='random stitches to run in both ways')
    parser.add_argument('--skip-whole', action='store_true', help='leave out the net as one graph')
    args = parser.parse_args()
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        net = snnet.create_stitchable_net(args.anchors, pretrained=False, drop_path_rate=args.drop_path)
        nets.append(net.to(args.device).train(args.train))
    eager, compiled = nets
    images = torch.randn(args.batch, *eager.input_size, device=args.device)
    precision = torch.autocast(args.device, torch.bfloat16) if args.amp else nullcontext()
    with torch.inference_mode(not args.train), precision:
        compile_blocks(compiled, args.backend)
        begin = time.perf_counter()
        count = warm_up(compiled, images)
        cost = time.perf_counter() - begin
        print(f'{len(eager.stitches)} stitches: {count} graphs, warm after {cost:.1f} s', flush=True)
        with torch.compiler.set_stance('fail_on_recompile'):
            firsts = [seconds(compiled, images, [stitch], args.train) for stitch in range(len(eager.stitches))]
            print(f'first calls of the stitches after it: at most {max(firsts):.3f} s, nothing compiled', flush=True)
            compare(eager, compiled, images, args)
        if not args.skip_whole:
            whole(eager, images, args)


if __name__ == '__main__':
    main()
