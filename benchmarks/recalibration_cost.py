"""CPU seconds and peak memory of recalibration on a net of one's own classes, and what it chooses.

    python benchmarks/recalibration_cost.py NET PICTURES --samples 200

NET is a folder of a net, PICTURES has splits of class folders (see examples/own_classes.py). Half of the pictures are
measured and the others judge. With --test, the validation split, which chose nothing, judges the choice. To compare
with another version, run this file with PYTHONPATH set to its checkout.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import torch
from torch import Tensor

import snnet
from snnet.data.transforms import clean_transform
from snnet.net.shared_prefixes import all_logits
from snnet.utils.read_rgb import read_rgb


def pictures(net: snnet.StitchableNet, split: Path, each: int | None) -> tuple[Tensor, Tensor]:
    """The first pictures of every class as the net sees them, and their classes, in an order drawn once."""
    transform, images, labels = clean_transform(net), list[Tensor](), list[int]()
    for label, folder in enumerate(sorted(path for path in split.iterdir() if path.is_dir())):
        files = sorted(folder.iterdir())[:each]
        images += [transform(read_rgb(file)) for file in files]
        labels += [label] * len(files)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return torch.stack(images)[order], torch.tensor(labels)[order]


@torch.no_grad()
def hits(net: snnet.StitchableNet, ids: list[int], images: Tensor, labels: Tensor) -> Tensor:
    """Which answers are right (stitches, images)."""
    right = torch.zeros(len(ids), len(images))
    for at in range(0, len(images), 32):
        for stitch, logits in all_logits(net, images[at : at + 32], ids):
            right[ids.index(stitch), at : at + 32] = (logits.argmax(1) == labels[at : at + 32]).float()
    return right


def main() -> None:
    """Recalibrates once and prints what it took."""
    parser = argparse.ArgumentParser(description='Measures what recalibrating a net takes and gives.')
    parser.add_argument('net', help='folder of the net')
    parser.add_argument('pictures', type=Path, help='folder of the splits')
    parser.add_argument('--samples', type=int, default=200, help='pictures to measure, and as many to judge')
    parser.add_argument('--test', action='store_true', help='judge the choice on the validation split')
    args = parser.parse_args()
    torch.set_num_threads(1)
    net, count = snnet.StitchableNet.from_pretrained(args.net).eval(), args.samples
    images, labels = pictures(net, args.pictures / 'train', 2 * count // net.num_classes)
    measured, held_out = (images[:count], labels[:count]), (images[count:], labels[count:])
    begin = time.process_time()
    snnet.recalibrate(net, [measured], samples=count, held_out=[held_out])
    seconds, chosen = time.process_time() - begin, net.statistics
    shares = {stitch: share for stitch, share in chosen.shares.items() if share} if chosen else {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f'{seconds:.0f} CPU seconds, {peak:.0f} MB at most; {len(shares)} stitches change: {shares}')
    if args.test and shares:
        test = pictures(net, args.pictures / 'validation', None)
        after = hits(net, [*shares], *test)
        net.set_statistics(None)
        change = 100 * (after - hits(net, [*shares], *test))
        error = float(change.mean(0).std()) / len(test[1]) ** 0.5
        mean, worst = float(change.mean()), float(change.mean(1).min())
        print(f'{mean:+.2f} +- {error:.2f} points on {len(test[1])} others; worst {worst:+.2f}')


if __name__ == '__main__':
    main()
