"""Evaluation of all stitches: shared parts against one pass a stitch, on the same images in one run.

    python benchmarks/evaluate.py --anchors deit_tiny,deit_small,deit_base --images 4 --pairs 3

Prints the ratio of the times and, from the FLOPs, the ratio that sharing can reach at best.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch

import snnet
from snnet.cost import part_flops
from snnet.tree import all_logits


def shared_flops(net: snnet.StitchableNet) -> Iterator[int]:
    """FLOPs of every front (anchor, stop), stitch layer behind it and end, each counted once."""
    parts = {anchor.name: part_flops(anchor) for anchor in map(net.anchor, range(len(net.anchors)))}
    seen = set()
    for stitch in net.stitches:
        path: tuple[object, ...] = ()
        for i, leg in enumerate(stitch.legs):
            if i:
                path = (*path, ('layer', stitch.layers[i - 1]))
                if path not in seen:
                    yield net.layer(stitch.layers[i - 1]).flops
                seen.add(path)
            cost = parts[leg.anchor]
            stages = [cost.stem] if leg.start is None else []
            stages += cost.modules[leg.start : leg.stop]
            stages += [cost.head] if leg.stop is None else []
            for number, flops in enumerate(stages, start=leg.start or 0):
                path = (*path, (leg.anchor, leg.start is None, number))
                if path not in seen:
                    yield flops
                seen.add(path)


@torch.inference_mode()
def main() -> None:
    """Prints times, the ratio, and the best possible ratio."""
    parser = argparse.ArgumentParser(description='All stitches with shared parts against one pass a stitch.')
    parser.add_argument('--anchors', default='deit_tiny,deit_small,deit_base')
    parser.add_argument('--images', type=int, default=4)
    parser.add_argument('--pairs', type=int, default=3, help='repetitions of both ways')
    args = parser.parse_args()
    torch.manual_seed(0)
    net = snnet.create_stitchable_net(args.anchors, pretrained=False).eval()
    ids = range(len(net.stitches))
    images = torch.randn(args.images, *net.input_size)
    single = sum(record.flops or 0 for record in net.records)
    shared = sum(shared_flops(net))
    print(f'{len(ids)} stitches: {single / 1e9:.1f} GFLOPs an image one by one, {shared / 1e9:.1f} shared')
    ratios = []
    for pair in range(args.pairs):
        begin = time.perf_counter()
        alone = [net(images, stitch=i) for i in ids]
        middle = time.perf_counter()
        together = dict(all_logits(net, images, ids))
        end = time.perf_counter()
        equal = all(torch.equal(together[i], alone[i]) for i in ids)
        ratios.append((middle - begin) / (end - middle))
        print(
            f'pair {pair}: one by one {middle - begin:.1f} s, shared {end - middle:.1f} s, equal bits: {equal}',
            flush=True,
        )
    print(f'shared is {statistics.median(ratios):.2f} times as fast; the FLOPs allow {single / shared:.2f}')


if __name__ == '__main__':
    main()
