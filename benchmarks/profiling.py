"""A latency table measured in rounds, with the frontier measured and the rest predicted, against one stitch at a time.

    python benchmarks/profiling.py
    python benchmarks/profiling.py --anchors deit_tiny,deit_small,deit_base --img-size 96 --minutes 1.5

The straightforward way calls each stitch as often as the profile does a settled one, one stitch after the other. Prints
the ratio of the times, how far the medians of both ways are apart (for stitches that the profile measured and for those
that it predicted), and the error of prediction that the table states. Accuracies are made up (they only pick the
frontier).
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch

import snnet
from snnet.profiling.profile import profile
from snnet.profiling.stopwatch import CALLS, LEAST_VISITS


def alone(net: snnet.StitchableNet, images: torch.Tensor, stitch: int) -> float:
    """Median milliseconds of a stitch by a plain loop."""
    times = []
    for number in range(LEAST_VISITS * (CALLS + 1) + 1):
        begin = time.perf_counter()
        net(images, stitch=stitch)
        if number:
            times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def in_words(errors: list[float]) -> str:
    """Mean and largest of some shares, in print."""
    return f'mean {100 * statistics.fmean(errors):.2f} %, largest {100 * max(errors):.2f} %' if errors else 'none'


@torch.inference_mode()
def main() -> None:
    """Prints times of both ways and how far they agree."""
    parser = argparse.ArgumentParser(description='Profiling against timing one stitch after the other.')
    parser.add_argument('--anchors', default='deit_tiny,deit_small')
    parser.add_argument('--img-size', type=int, default=64)
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--minutes', type=float, default=1.0, help='most minutes of the plain loop')
    args = parser.parse_args()
    torch.manual_seed(0)
    net = snnet.create_stitchable_net(args.anchors, pretrained=False, img_size=args.img_size).eval()
    net.records = [replace(r, top1=50 + (r.flops or 0) ** 0.1 + r.stitch * 37 % 11 / 11) for r in net.records]
    begin = time.perf_counter()
    (table,) = profile(net, batches=[args.batch], stitches='frontier')
    ours = time.perf_counter() - begin
    print(f'{len(net.stitches)} stitches, {table}', flush=True)
    images = torch.randn(args.batch, *net.input_size)
    plain: dict[int, float] = {}
    begin = time.perf_counter()
    for stitch in range(len(net.stitches)):
        plain[stitch] = alone(net, images, stitch)
        if time.perf_counter() - begin > 60 * args.minutes:
            break
    theirs = (time.perf_counter() - begin) * len(net.stitches) / len(plain)
    print(f'ours {ours:.1f} s, one after the other {theirs:.1f} s: {theirs / ours:.2f} times as fast')
    apart = {i: abs(table.rows[i].ms / ms - 1) for i, ms in plain.items()}
    print('measured against the plain loop:', in_words([apart[i] for i in apart if i in table.measured]))
    print('predicted against the plain loop:', in_words([apart[i] for i in apart if i not in table.measured]))
    if table.error is not None:
        mean, largest = (100 * table.error[name] for name in ('mean', 'largest'))
        print(f'error that the table states: mean {mean:.2f} %, largest {largest:.2f} %')


if __name__ == '__main__':
    main()
