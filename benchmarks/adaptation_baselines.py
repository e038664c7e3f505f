"""What else the time that adapting takes could buy: a stitch trained alone, one distilled from scratch, joint training.

    python benchmarks/adaptation_baselines.py vit SOURCE FOLDER --direction slow_to_fast --steps 600 --lr 4e-3

takes the families and arguments of benchmarks/adaptation.py. Each stitch gets the same CPU seconds in each way, on the
same images, with the largest anchor as teacher; joint training gets those of all stitches together:

- adapted: `snnet.adapt`;
- alone: all weights of the extracted stitch, front included, from least squares; nothing is shared with the anchors;
- from scratch: a network like the extracted stitch, with random weights;
- joint: the recipe of the paper, which trains all anchors and stitches at once, one stitch per step, with the labels.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import snnet
from snnet.stitching.stitch import parse_ids
from snnet.utils.log import set_up_logging
from snnet.utils.plugins import import_plugins

import_plugins([str(Path(__file__).with_name(f'{name}.py')) for name in ('adaptation', 'adaptation_families')])
from adaptation import (  # type: ignore[import-not-found]  # noqa: E402
    baseline,
    measure,
    parse_arguments,
    summarize,
)
from adaptation_families import FAMILIES, Labeled  # type: ignore[import-not-found]  # noqa: E402


def train(
    module: nn.Module, images: Tensor, answers: Tensor, seconds: float, lr: float, args: argparse.Namespace
) -> nn.Module:
    """Distils the answers into a module for so many CPU seconds: AdamW, with a learning rate that falls to zero."""
    optimizer = torch.optim.AdamW(module.parameters(), lr, weight_decay=0.0)
    some, begin, tau = torch.Generator().manual_seed(args.seed), time.process_time(), args.temperature
    while (passed := (time.process_time() - begin) / seconds) < 1:
        optimizer.param_groups[0]['lr'] = lr * min(1.0, 10 * passed + 0.01, 1.1 * (1 - passed))
        chosen = torch.randint(len(images), (args.batch_size,), generator=some)
        found, wanted = module(images[chosen]) / tau, answers[chosen] / tau
        loss = F.kl_div(found.log_softmax(1), wanted.softmax(1), reduction='batchmean') * tau**2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()


def random_weights(module: nn.Module, seed: int) -> nn.Module:
    """The same modules as torch initializes them; parameters outside of torch's own modules from a narrow normal."""
    torch.manual_seed(seed)
    reset = set()
    for part in module.modules():
        if callable(again := getattr(part, 'reset_parameters', None)):
            again()
            reset |= set(part.parameters(recurse=False))
    with torch.no_grad():
        for parameter in set(module.parameters()) - reset:
            parameter.normal_(0, 0.02)
    return module.train()


def joint(net: snnet.StitchableNet, data: Labeled, answers: Tensor, seconds: float, args: argparse.Namespace) -> None:
    """The recipe of the paper: uniform draws of stitches, hard distillation with alpha 0.5, AdamW."""
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-4, weight_decay=0.05)
    draw, some, begin = random.Random(args.seed), torch.Generator().manual_seed(args.seed), time.process_time()
    while (passed := (time.process_time() - begin) / seconds) < 1:
        optimizer.param_groups[0]['lr'] = 3e-4 * min(1.0, 10 * passed + 0.01, 1.1 * (1 - passed))
        chosen = torch.randint(len(data[0]), (args.batch_size,), generator=some)
        logits = net(data[0][chosen], stitch=draw.randrange(len(net.stitches)))
        loss = (F.cross_entropy(logits, data[1][chosen]) + F.cross_entropy(logits, answers[chosen].argmax(1))) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()


@torch.inference_mode()
def top1(module: nn.Module, test: Labeled) -> float:
    """Percent of the images that are right."""
    right = [module(images).argmax(1) == labels for images, labels in zip(*(t.split(50) for t in test), strict=True)]
    return 100 * float(torch.cat(right).double().mean())


def main() -> None:
    """Trains in all ways and prints a table."""
    args = parse_arguments('Compares adapting with other uses of the same time.')
    set_up_logging()
    net, data, test = FAMILIES[args.family](args)
    anchors = list(range(len(net.anchors)))
    ids = [i for i in parse_ids(args.stitches, len(net.stitches)) if i not in anchors]
    plain = copy.deepcopy(net)
    with torch.inference_mode():
        answers = torch.cat([net(chunk, stitch=anchors[-1]) for chunk in data[0].split(50)])
    answers = answers.clone()  # an ordinary tensor again
    begin = time.process_time()
    snnet.adapt(
        net, [data[0]], args.minutes, steps=args.steps, samples=len(data[0]), blends=args.blends, stitches=ids,
        blocks=args.blocks, batch_size=args.batch_size, lr=args.lr, temperature=args.temperature,
        storage=args.storage, seed=args.seed,
    )  # fmt: skip
    total = time.process_time() - begin
    records, _ = summarize(net, measure(net, test, anchors + ids), ids)
    tops = {record.stitch: record.top1 or 0 for record in records}
    together = copy.deepcopy(plain)
    joint(together, data, answers, total, args)
    jointly = {i: 100 * float(rows[0].mean()) for i, rows in measure(together, test, anchors + ids).items()}
    print(f'{total / len(ids):.0f} CPU seconds per stitch')
    print('  id    MFLOPs  mixing  adapted  alone  scratch  joint  stitch')
    for record in sorted(records, key=lambda record: record.flops or 0):
        i, others = record.stitch, '              '
        if not record.anchor:
            ways = [(plain.extract(i), 1e-3), (random_weights(plain.extract(i), args.seed), 3e-3)]
            found = [top1(train(way, data[0], answers, total / len(ids), lr, args), test) for way, lr in ways]
            others = f'{found[0]:5.1f}  {found[1]:7.1f}'
        line = f'{i:>4}  {(record.flops or 0) / 1e6:>8.4g}  {baseline(records, record):>6.1f}  {tops[i]:>7.1f}'
        print(f'{line}  {others}  {jointly[i]:5.1f}  {record.legs}{" *" if record.anchor else ""}', flush=True)


if __name__ == '__main__':
    main()
