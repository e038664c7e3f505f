"""Memory of a process in which random stitches run with random batch sizes, by how many operations oneDNN keeps ready.

    python -m benchmarks.batch_memory --capacities 1024 8192 --seconds 60
    python -m benchmarks.batch_memory --net NET

The process warms up as the one of `snnet serve` that computes, unless --cold. A batch of b images comes with a share of
(b + 1) ** -2. Without --net, three MobileNets (or --anchors) with random weights are stitched. With glibc, it also says
how much malloc has given out: where that stays and memory grows, what grows are holes.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.service import ANCHORS, Held, make_net
from snnet.serve.build_service import CAPACITY_SETTING
from snnet.serve.service.net_process import warm_up
from snnet.serve.service.served_net import load_served_net


class MallocInfo(ctypes.Structure):
    """What glibc's `mallinfo2` says."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            'arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks', 'fsmblks', 'uordblks', 'fordblks', 'keepcost'
        )
    )  # fmt: skip


def given_out() -> float:
    """Megabytes that malloc has given out and not got back; NaN where it does not say."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):  # another C library, or Windows
        return float('nan')
    ask.restype = MallocInfo
    found = ask()
    return float(found.uordblks + found.hblkhd) / 1e6


def measure(net: Path, seconds: float, most: int, seed: int, warm: bool) -> str:
    """Runs random batches in this process; memory before and after, and the median time of single images."""
    torch.set_num_threads(1)
    served, draw = load_served_net('net', str(net), device='cpu'), random.Random(seed)
    stitches, sizes = [record.stitch for record in served.records], range(1, most + 1)
    image, seen, singles = torch.zeros(served.input_size), set[tuple[int, int]](), list[float]()
    begin = Held.by(os.getpid()).megabytes
    if warm:
        warm_up(served, stitches, most)
    given = [given_out()]
    memory, batches, end = [Held.by(os.getpid()).megabytes], 0, time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        stitch, size = draw.choice(stitches), draw.choices(sizes, [(size + 1) ** -2 for size in sizes])[0]
        served.run([image] * size, stitch)
        if size == 1:
            singles.append(time.perf_counter() - now)
        seen.add((stitch, size))
        batches += 1
        if batches % 100 == 0:
            memory.append(Held.by(os.getpid()).megabytes)
            given.append(given_out())
    return (
        f'{begin:.0f} MB before the warm-up, {memory[0]:.0f} behind it, {memory[len(memory) // 2]:.0f} after half of '
        f'{batches} batches, {memory[-1]:.0f} at the end (at most {max(memory):.0f}); given out by malloc behind the '
        f'warm-up {given[0]:.1f} MB, after half {given[len(given) // 2]:.1f}, at the end {given[-1]:.1f} (at most '
        f'{max(given):.1f}); {len(seen)} of {len(stitches) * most} pairs of stitch and size; an image alone takes '
        f'{1000 * statistics.median(singles):.2f} ms (median)'
    )


def main() -> None:
    """Starts a process per capacity and prints what it measured."""
    parser = argparse.ArgumentParser(description='Measures the memory of a process that computes batches of any size.')
    parser.add_argument('--net', type=Path, help='folder of a net')
    parser.add_argument('--anchors', default=ANCHORS, help='without --net: names of timm, given random weights')
    parser.add_argument('--capacities', type=int, nargs='+', default=[1024, 8192])
    parser.add_argument('--seconds', type=float, default=60.0, help='length of each measurement')
    parser.add_argument('--most', type=int, default=16, help='largest batch')
    parser.add_argument('--cold', action='store_true', help='without warming up')
    parser.add_argument('--seed', type=int, default=2026)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        net = args.net or make_net(args.anchors, Path(folder) / 'net')
        call = f'print(measure(Path({str(net)!r}), {args.seconds}, {args.most}, {args.seed}, {not args.cold}))'
        for capacity in args.capacities:
            program = [sys.executable, '-c', f'from benchmarks.batch_memory import Path, measure; {call}']
            settings = {**os.environ, CAPACITY_SETTING: str(capacity)}
            done = subprocess.run(program, env=settings, check=True, capture_output=True, text=True)
            print(f'{capacity} operations: {done.stdout.strip()}', flush=True)


if __name__ == '__main__':
    main()
