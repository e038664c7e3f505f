"""Evaluation of all stitches at once against one pass over the images per stitch, on the same images in one run.

    python benchmarks/evaluate.py --anchors deit_tiny,deit_small,deit_base --images 4 --pairs 3

With one pass per stitch, every image is decoded once per stitch; evaluation decodes it once. Prints the ratio of the
times for decoding (JPEG files of 500 x 375 pixels, made here) and for computing, and the best ratio that sharing parts
allows, from the FLOPs. With --suffix-batch the stitches with the same end also run as one batch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import snnet
from snnet.anchors.flops import part_flops
from snnet.data.datasets import DataSettings, open_dataset
from snnet.data.unaugmented_images import clean_loader
from snnet.net.part_tree import StitchPart, build_part_tree
from snnet.net.shared_prefixes import all_logits


def shared_flops(net: snnet.StitchableNet) -> int:
    """FLOPs of every part in the tree of parts, each counted once."""
    anchors = {anchor.name: part_flops(anchor) for anchor in map(net.anchor, range(len(net.anchors)))}

    def flops(part: StitchPart) -> int:
        if part.kind == 'layer':
            return net.layer(part.number).flops
        cost = anchors[part.anchor]
        return cost.modules[part.number] if part.kind == 'module' else int(getattr(cost, part.kind))

    return sum(flops(node.part) for node in build_part_tree(net, range(len(net.stitches))).walk() if node.part)


def write_photographs(folder: Path, count: int) -> None:
    """JPEG files of the usual size, with as much detail as photographs have: smooth shapes and some noise."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        pixels = np.asarray(coarse) + random.normal(0, 12, (375, 500, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f'{number}.jpg', quality=90)


Result = TypeVar('Result')


def timed(run: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds that a call takes, with all its work on the device, and its result."""
    begin = time.perf_counter()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin, result


@torch.inference_mode()
def main() -> None:
    """Prints times, the ratios, and the best possible one."""
    parser = argparse.ArgumentParser(description='All stitches in one pass against one pass a stitch.')
    parser.add_argument('--anchors', default='deit_tiny,deit_small,deit_base')
    parser.add_argument('--images', type=int, default=4)
    parser.add_argument('--pairs', type=int, default=3, help='repetitions of both ways')
    parser.add_argument('--suffix-batch', type=int, default=0, help='as of eval_stitches.py')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    torch.manual_seed(0)
    net = snnet.create_stitchable_net(args.anchors, pretrained=False, num_classes=1).eval().to(args.device)
    ids = range(len(net.stitches))
    single, shared = sum(record.flops or 0 for record in net.records), shared_flops(net)
    print(f'{len(ids)} stitches: {single / 1e9:.1f} GFLOPs per image one by one, {shared / 1e9:.1f} shared')
    decoding, computing = [], []
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder, 'validation', 'class'), args.images)
        settings = DataSettings(data_dir=folder, workers=0)
        dataset = open_dataset(settings, 'validation', net)

        def decode() -> Tensor:
            return next(iter(clean_loader(settings, dataset, net, range(args.images), args.images)))[0]

        images = decode().to(args.device)
        net(images, stitch=0)
        for pair in range(args.pairs):
            decoding.append(timed(lambda: [decode() for _ in ids])[0] / timed(decode)[0])
            slow, alone = timed(lambda: {i: net(images, stitch=i) for i in ids})
            fast, together = timed(lambda: dict(all_logits(net, images, ids, args.suffix_batch)))
            computing.append(slow / fast)
            worst = max(float((together[i] - alone[i]).abs().max()) for i in ids)
            print(
                f'pair {pair}: one by one {slow:.2f} s, shared {fast:.2f} s, largest difference {worst:.1g}; '
                f'decoding {decoding[-1]:.1f} times as long one by one',
                flush=True,
            )
    ratio, bound = statistics.median(computing), single / shared
    print(f'decoding: {statistics.median(decoding):.1f} times as fast ({len(ids)} passes against one)')
    print(f'computing: {ratio:.2f} times as fast; sharing allows {bound:.2f}, so {100 * ratio / bound:.0f} % of it')


if __name__ == '__main__':
    main()
