"""What decides how high a frontier lies: named recipes on the families of cifar10_family.py, in memory, paired by seed.

    python examples/cifar10_family.py SOURCE output/family --family vit
    python examples/ablations.py SOURCE output/family --family vit --table init --seeds 0 1

Every run gets the same budget of student FLOPs (`epochs` times what the uniform sampler spends on an epoch), the same
images in the same order with the same augmentation (so the teacher's answers are computed once a seed and epoch), and
its result is kept in TARGET/ablations/FAMILY.jsonl: what is there is not run again. `select` is the accuracy on the
first 2,000 validation images, on which recipes were chosen, `confirm` that on the other 2,000.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from snnet import Record, StitchableNet, create_stitchable_net, initialise
from snnet.config import TrainSettings
from snnet.frontier import area, mixing_accuracy
from snnet.optim import make_optimizer
from snnet.plugins import import_plugins
from snnet.seeds import generator, seed_libraries
from snnet.solve import kaiming
from snnet.tree import _Node, _parts

import_plugins([str(Path(__file__).with_name('cifar10_family.py'))])
from cifar10_family import BATCH, FAMILIES, TRAIN, VALIDATION, batches, load  # noqa: E402

CALIBRATION = 500
"""Images whose statistics batch norms take on where they are recalibrated for each stitch."""


@dataclass(frozen=True)
class Recipe:
    """How a net is built and trained; the defaults are the paper's."""

    epochs: float = 3.0
    opt: str = 'adamw'
    lr: float = 3e-4
    stitch_lr: float | None = None
    weight_decay: float = 0.05
    clip: float | None = None
    init: str = 'joint'
    init_samples: int = 100
    net: dict[str, Any] = field(default_factory=dict)
    freeze: bool = False
    sampler: str = 'uniform'
    per_step: int = 1
    distill: str = 'hard'
    alpha: float = 0.5
    tau: float = 1.0
    smoothing: float = 0.1
    ema: float | None = None
    recalibrate: bool = False
    bn_eval: bool = False
    warm: float = 0.0


class Bench:
    """A family with its images: trains and evaluates recipes, and keeps the results."""

    def __init__(self, source: Path, target: Path, family: str) -> None:
        self.target, self.family = target, family
        self.anchors = [f'{name}={target}/{name}.safetensors' for name in FAMILIES[family]]
        self.images, self.labels = load(source, TRAIN)
        self.tests, self.answers = load(source, VALIDATION)
        self.file = target / 'ablations' / f'{family}.jsonl'
        self.file.parent.mkdir(exist_ok=True)

    def teacher(self, seed: int, epoch: int) -> Tensor:
        """The largest anchor's logits for the batches of an epoch, computed once."""
        file = self.file.with_name(f'{self.family}_teacher_{seed}_{epoch}.pt')
        if not file.exists():
            model = create_stitchable_net(self.anchors, pretrained=False).eval()
            with torch.inference_mode():
                last = len(self.anchors) - 1
                logits = [model(x, stitch=last) for x, _, _ in batches(self.images, self.labels, seed, epoch)]
            torch.save(torch.cat(logits), file)
        return torch.load(file, weights_only=True)

    def labelled(self, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches without end: images, classes, the teacher's logits."""
        epoch = 0
        while True:
            teacher = self.teacher(seed, epoch)
            for i, (x, y, _) in enumerate(batches(self.images, self.labels, seed, epoch)):
                yield x, y, teacher[i * BATCH : (i + 1) * BATCH]
            epoch += 1

    def build(self, recipe: Recipe, seed: int) -> StitchableNet:
        """The net with its stitch layers initialised."""
        seed_libraries(seed)
        net = create_stitchable_net(self.anchors, pretrained=False, **recipe.net)
        net.to(memory_format=torch.channels_last)  # faster convolutions on a CPU
        if recipe.init == 'kaiming':
            kaiming(net, generator(seed, 'kaiming'))
        else:
            order = torch.randperm(len(self.images), generator=generator(seed, 'initialise'))
            clean = self.images[order[: recipe.init_samples]]
            initialise(net, clean.split(100), recipe.init_samples, recipe.init)
        return net

    def train(self, recipe: Recipe, seed: int) -> StitchableNet:
        """Spends the budget on draws of the sampler; the learning rate follows the share that is spent."""
        net = self.build(recipe, seed)
        if recipe.freeze:
            net.anchors.requires_grad_(False)
        settings = TrainSettings(
            opt=recipe.opt, lr=recipe.lr, stitch_lr=recipe.stitch_lr, weight_decay=recipe.weight_decay
        )
        optimizer = make_optimizer(net, settings)
        rates = [group['lr'] for group in optimizer.param_groups]
        is_layer = {id(p) for p in net.stitch_layers.parameters()}
        average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)) if recipe.ema else None
        draw = make_sampler(net, recipe, seed)
        flops = [record.flops or 0 for record in net.records]
        budget = recipe.epochs * (len(self.images) // BATCH) * mean(flops)
        spent = 0.0
        net.train()
        if recipe.freeze:
            net.anchors.eval()
        if recipe.bn_eval:
            set_norms(net, False)
        for step, (x, y, teacher) in enumerate(self.labelled(seed)):
            share = spent / budget
            if share >= 1:
                break
            factor = min(1.0, (share + 1e-3) / 0.05) * 0.5 * (1 + math.cos(math.pi * share))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                warming = share < recipe.warm and id(group['params'][0]) not in is_layer
                group['lr'] = 0.0 if warming else rate * factor
            optimizer.zero_grad(set_to_none=True)
            chosen = draw(step)
            for stitch in chosen:
                loss = loss_of(recipe, net(x, stitch=stitch), y, teacher) / len(chosen)
                loss.backward()
                spent += flops[stitch]
            if recipe.clip:
                nn.utils.clip_grad_norm_([p for p in net.parameters() if p.grad is not None], recipe.clip)
            optimizer.step()
            if average is not None:
                average.update_parameters(net)
        if average is not None:
            for own, other in zip(net.parameters(), average.module.parameters(), strict=True):
                own.data.copy_(other.data)
        return net.eval()

    def run(self, name: str, recipe: Recipe, seed: int, whole: bool = True) -> dict[str, Any]:
        """The kept result of a run, or a new one."""
        rows = [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []
        for row in rows:
            same = Recipe(**row['recipe']) == recipe and row['seed'] == seed
            if same and (row['confirm'] or not whole):
                return row | {'name': name}
        began = time.monotonic()
        net = self.train(recipe, seed)
        trained = time.monotonic() - began
        calibration = self.images[:CALIBRATION] if recipe.recalibrate else None
        half = len(self.tests) // 2
        results = [top1s(net, self.tests[:half], self.answers[:half], calibration)]
        results.append(top1s(net, self.tests[half:], self.answers[half:], calibration) if whole else [])
        row = {
            'name': name, 'seed': seed, 'recipe': asdict(recipe), 'train_s': round(trained, 1),
            'eval_s': round(time.monotonic() - began - trained, 1), 'flops': [r.flops for r in net.records],
            'legs': [r.legs for r in net.records], 'anchors': [r.anchor for r in net.records],
            'select': results[0], 'confirm': results[1],
        }  # fmt: skip
        with open(self.file, 'a') as file:
            file.write(json.dumps(row) + '\n')
        return row


def set_norms(net: nn.Module, training: bool) -> None:
    """Batch norms alone into train or eval mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(training)


def loss_of(recipe: Recipe, logits: Tensor, y: Tensor, teacher: Tensor) -> Tensor:
    """(1 - alpha) times the cross-entropy with the classes, alpha times the distance to the teacher."""
    base = F.cross_entropy(logits, y, label_smoothing=recipe.smoothing)
    if recipe.distill == 'none':
        return base
    if recipe.distill == 'hard':
        distance = F.cross_entropy(logits, teacher.argmax(1))
    else:
        own, other = (F.log_softmax(x / recipe.tau, dim=1) for x in (logits, teacher))
        distance = F.kl_div(own, other, reduction='batchmean', log_target=True) * recipe.tau**2
    return (1 - recipe.alpha) * base + recipe.alpha * distance


def make_sampler(net: StitchableNet, recipe: Recipe, seed: int) -> Any:
    """Draws `per_step` stitches a step: 'uniform', 'anchors:P' (one with probability P), 'bins', 'sandwich'."""
    kind, _, value = recipe.sampler.partition(':')
    anchors = [r.stitch for r in net.records if r.anchor]
    stitches = [r.stitch for r in net.records if not r.anchor]
    everything = stitches if recipe.freeze else anchors + stitches
    logs = {r.stitch: math.log(r.flops or 1) for r in net.records}

    def pick(ids: Sequence[int], draw: torch.Generator) -> int:
        return ids[int(torch.randint(len(ids), (), generator=draw))]

    bins: list[list[int]] = []
    width = (max(logs.values()) - min(logs.values())) / 12
    for stitch in sorted(everything, key=lambda s: logs[s]):
        if not bins or logs[stitch] - logs[bins[-1][0]] > width:
            bins.append([])
        bins[-1].append(stitch)

    def sampler(step: int) -> list[int]:
        draw = generator(seed, 'stitch', step)
        if kind == 'sandwich':
            return [anchors[step % len(anchors)], *(pick(stitches, draw) for _ in range(recipe.per_step - 1))]
        if kind == 'anchors' and float(torch.rand((), generator=draw)) < float(value):
            return [pick(anchors, draw)]
        if kind == 'bins':
            return [pick(bins[int(torch.randint(len(bins), (), generator=draw))], draw)]
        pool = stitches if kind == 'anchors' else everything
        return [pick(pool, draw) for _ in range(recipe.per_step)]

    return sampler


@torch.inference_mode()
def top1s(net: StitchableNet, images: Tensor, labels: Tensor, calibration: Tensor | None) -> list[float]:
    """Top-1 of every stitch; batch norms take on the statistics of the calibration images first, part by part."""
    root = _Node()
    for stitch in range(len(net.stitches)):
        node = root
        for part, run in _parts(net, stitch):
            node = node.then.setdefault(part, _Node(run))
        node.stitches.append(stitch)
    found = [0.0] * len(net.stitches)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0

    def visit(node: _Node, x: Tensor, own: Tensor | None) -> None:
        if node.run is not None:
            if own is not None:
                for norm in norms:
                    norm.training = True
                own = node.run(own)
                for norm in norms:
                    norm.training = False
            x = torch.cat([node.run(part) for part in x.split(250)])
        for stitch in node.stitches:
            found[stitch] = 100 * float((x.argmax(1) == labels).float().mean())
        for child in node.then.values():
            visit(child, x, own)

    visit(root, images, calibration)
    return found


def summary(row: dict[str, Any], part: str) -> dict[str, float]:
    """Area under the frontier, mean top-1, top-1 of the anchors, and how many stitches beat mixing."""
    records = [
        Record(i, legs, flops=f, top1=a, anchor=x)
        for i, (legs, f, a, x) in enumerate(zip(row['legs'], row['flops'], row[part], row['anchors'], strict=True))
    ]
    pairs = zip(row[part], (mixing_accuracy(records, flops) for flops in row['flops']), row['anchors'], strict=True)
    beaten = sum(top1 > (baseline or 0) for top1, baseline, anchor in pairs if not anchor)
    anchors = {r.legs.removesuffix('[:]'): r.top1 or 0.0 for r in records if r.anchor}
    return {'area': area(records) or 0.0, 'mean': mean(row[part]), 'beat mixing': float(beaten)} | anchors


def report(rows: list[dict[str, Any]], part: str) -> str:
    """Name, number of seeds and the mean of each number, with the standard deviation over seeds for the area."""
    lines = []
    for name in dict.fromkeys(row['name'] for row in rows):
        found = [summary(row, part) for row in rows if row['name'] == name and row[part]]
        if found:
            means = {key: mean(f[key] for f in found) for key in found[0]}
            spread = f' ± {stdev(f["area"] for f in found):.2f}' if len(found) > 1 else ''
            numbers = ' | '.join(f'{value:.2f}{spread if key == "area" else ""}' for key, value in means.items())
            lines.append(f'| {name} | {len(found)} | {numbers} |')
            head = f'| {part} | seeds | {" | ".join(means)} |\n|---|---|{"---|" * len(means)}'
    return '\n'.join([head, *lines])


PAPER = {'vit': Recipe(), 'resnet': Recipe(opt='sgd', lr=0.05, weight_decay=2e-5)}
"""The paper's recipe at the learning rate that is best for it here."""


def tables(family: str) -> dict[str, dict[str, Recipe]]:
    """Named recipes, table by table."""
    paper = PAPER[family]

    def vary(**changes: Any) -> Recipe:
        return replace(paper, **changes)

    inits: dict[str, dict[str, Any]] = {'Kaiming': {'init': 'kaiming'}}
    inits |= {f'least squares, {n} images': {'init_samples': n} for n in (10, 30, 100, 300, 1000)}
    inits['least squares, mean of joins'] = {'init': 'mean'}

    found: dict[str, dict[str, Recipe]] = {
        'lr': {f'lr {lr:g}': vary(lr=lr) for lr in ((1e-4, 3e-4, 1e-3) if family == 'vit' else (5e-3, 0.02, 0.05))},
        'init': {
            f'{label}, {epochs:g} epochs': vary(epochs=epochs, **changes)
            for epochs in (0.0, paper.epochs)
            for label, changes in inits.items()
        },
        'space': {
            'fast to slow, (2, 1)': paper,
            'slow to fast': vary(net={'direction': 'slow_to_fast'}),
            'all pairs and triples': vary(net={'nearest': False}),
            '(2, 2)': vary(net={'window': 2, 'step': 2}),
            '(3, 3)': vary(net={'window': 3, 'step': 3}),
        },
        'tuning': {
            'everything': paper,
            'stitch layers only': vary(freeze=True),
            'stitch layers only, lr x 10': vary(freeze=True, lr=10 * paper.lr),
        },
        'epochs': {f'{epochs:g} epochs': vary(epochs=epochs) for epochs in (1.0, 3.0, 6.0)},
        'samplers': {
            'uniform': paper,
            'FLOPs bins': vary(sampler='bins'),
            'anchors 30 %': vary(sampler='anchors:0.3'),
            'sandwich of 2': vary(sampler='sandwich', per_step=2),
            '2 a step': vary(per_step=2),
        },
    }
    return found


def main() -> None:
    """Runs the recipes of a table and prints their results."""
    parser = argparse.ArgumentParser(description='Compares recipes on a family of cifar10_family.py.')
    parser.add_argument('source', type=Path, help='folder of the sprites')
    parser.add_argument('target', type=Path, help="folder of the family's weights")
    parser.add_argument('--family', choices=FAMILIES, required=True)
    parser.add_argument('--table', required=True)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--half', action='store_true', help='evaluate on the first half of the images only')
    args = parser.parse_args()
    bench = Bench(args.source, args.target, args.family)
    rows = []
    for seed in args.seeds:
        for name, recipe in tables(args.family)[args.table].items():
            rows.append(bench.run(name, recipe, seed, whole=not args.half))
            numbers = ', '.join(f'{key} {value:.2f}' for key, value in summary(rows[-1], 'select').items())
            print(f'{name} (seed {seed}): {numbers}; {rows[-1]["train_s"]} + {rows[-1]["eval_s"]} s', flush=True)
    for part in ('select',) if args.half else ('select', 'confirm'):
        print(report(rows, part))


if __name__ == '__main__':
    main()
