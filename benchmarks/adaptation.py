"""What adapting stitches is worth: each before and after, against mixing its anchors, on images that chose nothing.

    python benchmarks/adaptation.py digits FOLDER           # the demo's anchors, or with --net its trained net
    python benchmarks/adaptation.py cifar SOURCE            # ResNet-20 and ResNet-56 on CIFAR-10
    python benchmarks/adaptation.py lite SOURCE WEIGHTS...  # EfficientNet-Lite on photographs
    python benchmarks/adaptation.py mobilenet SOURCE        # the public MobileNetV1 0.25, 0.5 and 0.75 on photographs
    python benchmarks/adaptation.py mixed SOURCE WEIGHTS    # MobileNetV1 0.25 and an EfficientNet-Lite on photographs
    python benchmarks/adaptation.py vit SOURCE FOLDER       # the transformers of examples/cifar10_family.py, in FOLDER

FOLDER is what examples/digits.py wrote, SOURCE holds the networks and sprites (see examples/cifar10_resnet.py) or the
photographs (see examples/mobilenet_v1.py), and WEIGHTS are state dicts of tf_efficientnet_lite0, 1, ... (see
benchmarks/recalibration.py). Differences are paired over images, with their standard errors.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import snnet
from snnet.budget.frontier import area, mixing_accuracy
from snnet.net.shared_prefixes import all_logits
from snnet.stitching.stitch import parse_ids
from snnet.utils.log import set_up_logging
from snnet.utils.plugins import import_plugins

import_plugins([str(Path(__file__).with_name(f'{name}.py')) for name in ('adaptation_families', 'adaptation_picture')])
from adaptation_families import FAMILIES, Labeled  # type: ignore[import-not-found]  # noqa: E402
from adaptation_picture import draw  # type: ignore[import-not-found]  # noqa: E402


@torch.inference_mode()
def measure(net: snnet.StitchableNet, test: Labeled, ids: list[int]) -> dict[int, Tensor]:
    """Right or not, cross entropy, and divergence from the largest anchor, of each image: (3, n) by stitch."""
    parts: dict[int, list[Tensor]] = {i: [] for i in ids}
    for images, labels in zip(test[0].split(50), test[1].split(50), strict=True):
        found = {i: logits.double() for i, logits in all_logits(net, images, ids)}
        wanted = found[len(net.anchors) - 1].log_softmax(1)
        for i, logits in found.items():
            logs = logits.log_softmax(1)
            apart = F.kl_div(logs, wanted, reduction='none', log_target=True).sum(1)
            rows = [(logits.argmax(1) == labels).double(), F.cross_entropy(logits, labels, reduction='none'), apart]
            parts[i].append(torch.stack(rows))
    return {i: torch.cat(rows, 1) for i, rows in parts.items()}


def paired(after: Tensor, before: Tensor) -> str:
    """Mean difference over images, with its standard error."""
    difference = after - before
    return f'{float(difference.mean()):+.2f} ± {float(difference.std()) / len(difference) ** 0.5:.2f}'


def baseline(records: list[snnet.Record], record: snnet.Record) -> float:
    """Top-1 of mixing anchors at the cost of a stitch; of the best anchor where it costs more than all of them."""
    mixed = mixing_accuracy(records, record.flops or 0)
    return max(r.top1 or 0 for r in records if r.anchor) if mixed is None else mixed


def summarize(net: snnet.StitchableNet, found: dict[int, Tensor], ids: list[int]) -> tuple[list[snnet.Record], str]:
    """Records with accuracies, and a sentence on all stitches."""
    top1 = {i: 100 * float(rows[0].mean()) for i, rows in found.items()}
    records = [replace(net.records[i], top1=top1[i]) for i in sorted(found)]
    gains = [top1[i] - baseline(records, net.records[i]) for i in ids]
    anchors = [record for record in records if record.anchor]
    extra = (area(records) or 0) - (area(anchors) or 0)
    above = sum(gain > 0 for gain in gains)
    return records, (
        f'{above} of {len(ids)} above mixing, {sum(gains) / len(gains):+.2f} points on average; area under the '
        f'frontier {extra:+.2f} points over that of the anchors'
    )


def only(net: snnet.StitchableNet, found: dict[int, Tensor], chosen: list[int]) -> str:
    """What a net with only these stitches between its anchors is worth."""
    few = {i: rows for i, rows in found.items() if i < len(net.anchors) or i in chosen}
    return summarize(net, few, chosen)[1] if chosen else 'no stitch'


def kept(net: snnet.StitchableNet, found: dict[int, Tensor], ids: list[int], last: bool) -> str:
    """The same for the stitches above mixing on one half of the test images; the other half judges.

    Args:
        net: has the costs.
        found: what `measure` gave.
        ids: stitches to choose from.
        last: whether the second half of the images judges.
    """
    half = next(iter(found.values())).shape[1] // 2
    halves = [{i: rows[:, :half] for i, rows in found.items()}, {i: rows[:, half:] for i, rows in found.items()}]
    records, _ = summarize(net, halves[not last], ids)
    chosen = [r.stitch for r in records if r.stitch in ids and (r.top1 or 0) > baseline(records, r)]
    return only(net, halves[last], chosen)


def parse_arguments(description: str) -> argparse.Namespace:
    """The family, and how its stitches adapt."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('family', choices=tuple(FAMILIES))
    parser.add_argument('paths', type=Path, nargs='+')
    parser.add_argument('--net', type=Path, help='digits: folder of a saved net')
    parser.add_argument('--anchors', default='', help='cifar, vit and mixed: names')
    parser.add_argument('--direction', default='fast_to_slow', choices=('fast_to_slow', 'slow_to_fast', 'two_way'))
    parser.add_argument(
        '--everywhere', action='store_true', help='cifar: join all positions with one grid, not only those of the rule'
    )
    parser.add_argument('--stage-ends', action='store_true', help='also join networks where their stages end')
    parser.add_argument('--size', type=int, default=192, help='photographs: pixels')
    parser.add_argument('--swap', action='store_true', help='photographs: exchange the halves')
    parser.add_argument('--samples', type=int, default=4000, help='images to adapt with')
    parser.add_argument('--blends', type=int, default=3, help='blends of two images to adapt with, beside each image')
    parser.add_argument('--stitches', default='', help="ids, such as '3-9,24' (default: all)")
    parser.add_argument('--minutes', type=float, default=10.0)
    parser.add_argument('--steps', type=int)
    parser.add_argument('--blocks', type=lambda text: None if text == 'auto' else int(text), default=0)
    parser.add_argument(
        '--storage', type=float, default=1.0, help='most own parameters, as a multiple of those of the net'
    )
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--lr', type=float, default=2e-3)
    parser.add_argument('--temperature', type=float, default=2.0)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--picture', type=Path, help='file without suffix, for a picture')
    return parser.parse_args()


def main() -> None:
    """Runs one family and prints a table."""
    args = parse_arguments('Measures what adapting stitches is worth.')
    set_up_logging()
    net, (images, _), test = FAMILIES[args.family](args)
    anchors, chosen = list(range(len(net.anchors))), parse_ids(args.stitches, len(net.stitches))
    ids = [i for i in chosen if i not in anchors]
    plain, before = copy.deepcopy(net), measure(net, test, anchors + ids)
    begin = time.process_time()
    done = snnet.adapt(
        net, [images], args.minutes, steps=args.steps, samples=len(images), blends=args.blends, stitches=ids,
        blocks=args.blocks, batch_size=args.batch_size, lr=args.lr, temperature=args.temperature,
        storage=args.storage, seed=args.seed,
    )  # fmt: skip
    seconds, after = time.process_time() - begin, measure(net, test, anchors + ids)
    with torch.inference_mode():
        same = all(torch.equal(net(test[0][:50], stitch=i), plain(test[0][:50], stitch=i)) for i in anchors)
    (old, was), (new, now) = summarize(net, before, ids), summarize(net, after, ids)
    print(done)
    print('  id    MFLOPs  mixing  top-1: before  after  change  cross entropy: change  stitch')
    first_tops, tops = ({record.stitch: record.top1 or 0 for record in records} for records in (old, new))
    for record in sorted(new, key=lambda record: record.flops or 0):
        i, mixing = record.stitch, baseline(new, record)
        change = paired(100 * after[i][0], 100 * before[i][0])
        entropy = paired(after[i][1], before[i][1])
        line = f'{i:>4} {(record.flops or 0) / 1e6:>9.4g}  {mixing:>6.2f}  {first_tops[i]:>13.2f}  {tops[i]:>5.2f}'
        print(f'{line}  {change:>14}  {entropy:>14}  {record.legs}{" *" if record.anchor else ""}')
    predicted = set(done.worth_having)
    right = sum((tops[i] > baseline(new, net.records[i])) == (i in predicted) for i in ids)
    print(f'before: {was}\nafter:  {now}')
    print(f'those that the report expects to be worth having: {only(net, after, done.worth_having)}')
    for last in (True, False):
        print(f'kept by one half of the test images, judged by the other: {kept(net, after, ids, last)}')
    print(f'the report without labels was right on {right} of {len(ids)} stitches')
    for direction in done.gains:
        some = [row.stitch for row in done.stitches if row.direction == direction]
        means = [sum(top[i] - baseline(new, net.records[i]) for i in some) / len(some) for top in (first_tops, tops)]
        print(
            f'from {direction[0]} to {direction[1]}: {means[0]:+.2f} before, {means[1]:+.2f} after, points over mixing'
        )
    if args.picture:
        print(*draw(old, new, args.picture, f'{args.family}: {done.steps} steps per stitch'))
    print(f'anchors the same bit by bit: {same}; {seconds:.0f} CPU seconds, {done.steps} steps per stitch')


if __name__ == '__main__':
    main()
