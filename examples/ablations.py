"""What decides how high a frontier lies: named recipes on the families of cifar10_family.py, in memory, paired by seed.

    python examples/cifar10_family.py SOURCE output/family --family vit
    python examples/ablations.py SOURCE output/family --family vit --table init --seeds 0 1

Every run spends the same student FLOPs: those of `passes` passes over the images with stitches drawn uniformly. All
runs see the same images in the same order with the same augmentation, so the teacher answers once; the seed decides
what is drawn and the images for least squares. Training is snnet's (`snnet.training.train_step`), a tenth of it
warm-up. Results are kept in TARGET/ablations: what is there is not run again. `select` is the top-1 on the first
2,000 validation images, on which recipes were chosen, `confirm` that on the other 2,000.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from timm.models.resnet import BasicBlock
from torch import Tensor

from snnet import Record, StitchableNet, create_stitchable_net, initialize
from snnet.anchors.weights import load_anchor
from snnet.budget.frontier import area, mixing_accuracy
from snnet.calibration.initialize import kaiming
from snnet.calibration.recalibrate import recalibrate as recalibrate_norms
from snnet.config.sections import from_flat
from snnet.net.shared_prefixes import all_logits
from snnet.training.answer import Question
from snnet.training.make_step import make_step
from snnet.training.samplers import SAMPLERS
from snnet.training.train_settings import TrainSettings
from snnet.training.train_step import TrainBatch, TrainStep
from snnet.training.weight_average import make_average
from snnet.utils.distributed import Ranks
from snnet.utils.plugins import import_plugins
from snnet.utils.seeds import generator, seed_libraries

import_plugins([str(Path(__file__).with_name('cifar10_family.py'))])
from cifar10_family import BATCH, FAMILIES, TRAIN, VALIDATION, batches, load  # noqa: E402

CALIBRATION = 500
"""Images whose statistics batch norms take on where they are recalibrated for each stitch."""
PASSES = 2.0
DATA_SEED = 0
TEACHER = 'cifar_vit128'
"""Better than any network that is stitched, like the paper's RegNet."""
OWN: dict[str, Any] = {'passes': PASSES, 'recalibrate': False}
"""Settings that train.py does not have."""
COMMON: dict[str, Any] = {
    'epochs': 10,
    'warmup_epochs': 1,
    'min_lr': 0.0,
    'teacher': 'none',
    'channels_last': True,
    'batch_size': 32,
}
"""Epochs are tenths of the budget here."""


class Bench:
    """A family with its images: trains and evaluates recipes, and keeps the results."""

    def __init__(self, source: Path, target: Path, family: str, count: int) -> None:
        names = [f'{name}={target}/{name}.safetensors' for name in FAMILIES[family]]
        self.anchors, self.best = names[:count], f'{TEACHER}={target}/{TEACHER}.safetensors'
        self.images, self.labels = load(source, TRAIN)
        self.tests, self.answers = load(source, VALIDATION)
        self.file = target / 'ablations' / f'{family}{count}.jsonl'
        self.file.parent.mkdir(exist_ok=True)

    def teacher(self, epoch: int) -> Tensor:
        """The teacher's logits for the batches of a pass, computed once."""
        file = self.file.with_name(f'teacher_{DATA_SEED}_{epoch}.pt')
        if not file.exists():
            teacher = load_anchor(self.best, pretrained=True).eval().to(memory_format=torch.channels_last)
            with torch.inference_mode():
                logits = [teacher(x) for x, _, _ in batches(self.images, self.labels, DATA_SEED, epoch)]
            torch.save(torch.cat(logits), file)
        return torch.load(file, weights_only=True)

    def labeled(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Batches of a size without end: images, classes, the teacher's logits."""
        epoch = 0
        while True:
            teacher = self.teacher(epoch)
            for i, (x, y, _) in enumerate(batches(self.images, self.labels, DATA_SEED, epoch)):
                yield from zip(
                    *(part.split(size) for part in (x, y, teacher[i * BATCH : (i + 1) * BATCH])), strict=True
                )
            epoch += 1

    def build(self, settings: TrainSettings) -> StitchableNet:
        """The net with its stitch layers initialized."""
        seed, initialization = settings.seeds.seed, settings.initialization
        seed_libraries(seed)
        space = {name: getattr(settings.net, name) for name in ('window', 'step', 'nearest', 'direction')}
        net = create_stitchable_net(self.anchors, pretrained=False, **space)
        net.to(memory_format=torch.channels_last)  # faster convolutions on a CPU
        if initialization.init == 'kaiming':
            kaiming(net, generator(seed, 'kaiming'))
        else:
            order = torch.randperm(len(self.images), generator=generator(seed, 'initialise'))
            samples = initialization.init_samples
            clean = self.images[order[:samples]]
            initialize(net, clean.split(100), samples, initialization.init, ridge=initialization.init_ridge)
        return net

    def train(self, settings: TrainSettings, passes: float) -> StitchableNet:
        """Takes as many steps as the budget pays for."""
        net = self.build(settings)
        if settings.net.freeze_anchors:
            net.anchors.requires_grad_(False)
        rank, batch_size = settings.net.stitch_rank, settings.data.batch_size
        for i in range(len(net.stitch_layers) if rank else 0):
            net.layer(i).start_update(rank, generator(settings.seeds.seed, 'update', i))
        ranks = Ranks(0, 1, torch.device('cpu'))
        budget = passes * (len(self.images) // batch_size) * mean(r.flops or 0 for r in net.records)
        steps = self.affordable(make_step(settings, net, ranks, range(1)), budget)  # type: ignore[arg-type]
        epoch = range(max(1, steps // settings.schedule.epochs))
        step = make_step(settings, net, ranks, epoch)  # type: ignore[arg-type]  # only its length counts
        question = Question(settings.distillation.distill, 0, settings.distillation.distill_tau)
        average = make_average(settings.average, net)
        net.train()
        if settings.net.freeze_anchors:
            net.anchors.eval()
        for number, (x, y, logits) in enumerate(islice(self.labeled(batch_size), steps)):
            answer = question.answer(logits)
            step.answers = lambda _number, _images, answer=answer: answer  # type: ignore[assignment]  # no teacher runs
            step(number, [TrainBatch(number, x, y)], [])
            if average is not None:
                average.update(net, number + 1)
        return (average.module if average is not None else net).eval()

    @staticmethod
    def affordable(step: TrainStep, budget: float) -> int:
        """How many steps spend the budget of student FLOPs per image."""
        steps, spent = 0, 0.0
        while budget:
            drawn = [step.sampler(steps, 0, turn) for turn in range(step.stitches_per_step)]
            spent += sum(step.net.records[stitch].flops or 0 for stitch in drawn)
            if spent > budget:
                break
            steps += 1
        return steps

    def run(self, name: str, recipe: dict[str, Any], seed: int, whole: bool = True) -> dict[str, Any]:
        """The kept result of a run, or a new one.

        Args:
            name: of the recipe.
            recipe: settings of train.py that differ from `COMMON` and the defaults, and those of `OWN`.
            seed: of every random choice.
            whole: evaluate on both halves of the validation images.
        """
        recipe = {key: value for key, value in recipe.items() if OWN.get(key) != value}
        rows = [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []
        for row in rows:
            if (row['recipe'], row['seed']) == (recipe, seed) and (row['confirm'] or not whole):
                return row | {'name': name}
        passes, recalibrated = recipe.get('passes', PASSES), recipe.pop('recalibrate', False)
        changes = {key: value for key, value in recipe.items() if key not in OWN}
        began = time.process_time()
        net = self.train(from_flat(TrainSettings, {**COMMON, **changes, 'seed': seed}), passes)
        trained = time.process_time()
        half, found = len(self.tests) // 2, {}
        for recalibrate in (False, True) if any(isinstance(m, BasicBlock) for m in net.modules()) else (False,):
            if recalibrate:
                recalibrate_norms(net, self.images[:CALIBRATION].split(100), CALIBRATION)
            results = [top1s(net, self.tests[:half], self.answers[:half])]
            results.append(top1s(net, self.tests[half:], self.answers[half:]) if whole else [])
            found[recalibrate] = {
                'name': name, 'seed': seed, 'recipe': recipe | ({'recalibrate': True} if recalibrate else {}),
                'train_s': round(trained - began, 1), 'flops': [r.flops for r in net.records],
                'legs': [r.legs for r in net.records], 'anchors': [r.anchor for r in net.records],
                'select': results[0], 'confirm': results[1],
            }  # fmt: skip
        with open(self.file, 'a') as file:
            file.writelines(json.dumps(row) + '\n' for row in found.values())
        return found[recalibrated]


@torch.inference_mode()
def top1s(net: StitchableNet, images: Tensor, labels: Tensor) -> list[float]:
    """Top-1 of every stitch."""
    right = [0] * len(net.stitches)
    for x, y in zip(images.split(250), labels.split(250), strict=True):
        for stitch, logits in all_logits(net, x, range(len(net.stitches))):
            right[stitch] += int((logits.argmax(1) == y).sum())
    return [100 * count / len(images) for count in right]


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


PAPER: dict[str, dict[str, Any]] = {
    'vit': {'lr': 3e-4},
    'resnet': {'opt': 'sgd', 'lr': 0.05, 'weight_decay': 2e-5},
}
"""The paper's recipe (uniform sampling, hard distillation, one learning rate), and what it takes from the family."""


RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    'vit': {
        'paper': {},
        'slow anchors': {'lr': 1e-4, 'stitch_lr': 3e-3},
        'slow anchors, drawn more often': {'lr': 1e-4, 'stitch_lr': 3e-3, 'sampler': 'anchors'},
        'slow anchors, soft': {
            'lr': 1e-4, 'stitch_lr': 3e-3, 'distill': 'soft', 'distill_alpha': 1.0, 'distill_tau': 2.0,
        },
        'slow anchors, moving average': {
            'lr': 1e-4, 'stitch_lr': 3e-3, 'model_ema': True, 'model_ema_decay': 0.99,
        },
        'slower anchors': {'lr': 3e-5, 'stitch_lr': 3e-3},
        'slower anchors, moving average': {'lr': 3e-5, 'stitch_lr': 3e-3, 'model_ema': True, 'model_ema_decay': 0.99},
    },
    'resnet': {
        'paper': {},
        'paper, recalibrated': {'recalibrate': True},
        'anchors drawn more often': {'sampler': 'anchors'},
        'anchors drawn more often, recalibrated': {'sampler': 'anchors', 'recalibrate': True},
        'a tenth of the rate': {'lr': 0.005},
        'a tenth of the rate, recalibrated': {'lr': 0.005, 'recalibrate': True},
        'slow anchors, recalibrated': {'lr': 0.005, 'stitch_lr': 0.05, 'recalibrate': True},
        'moving average, recalibrated': {'model_ema': True, 'model_ema_decay': 0.99, 'recalibrate': True},
    },
}  # fmt: skip
"""What was compared with the paper's recipe."""


def tables(family: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Named recipes, table by table, as what they change of the paper's."""
    inits: dict[str, dict[str, Any]] = {'Kaiming': {'init': 'kaiming'}}
    inits |= {f'least squares, {n} images': {'init_samples': n} for n in (10, 30, 100, 300, 1000)}
    inits['least squares, mean of joins'] = {'init': 'mean'}
    lr = PAPER[family]['lr']
    return {
        'lr': {f'lr {rate:g}': {'lr': rate} for rate in (lr / 3, lr, 3 * lr)},
        'untrained': {name: {'passes': 0.0, **changes} for name, changes in inits.items()},
        'trained': inits,
        'space': {
            'fast to slow, (2, 1)': {},
            'slow to fast': {'direction': 'slow_to_fast'},
            'all pairs and triples': {'nearest': False},
            '(2, 2)': {'window': 2, 'step': 2},
            '(3, 3)': {'window': 3, 'step': 3},
        },
        'tuning': {
            'everything': {},
            'stitch layers only': {'freeze_anchors': True},
            'stitch layers only, lr x 10': {'freeze_anchors': True, 'lr': 10 * lr},
        },
        'samplers': {name: {'sampler': name} for name in SAMPLERS},
        'others': {
            'one stitch a step': {},
            'two stitches a step': {'stitches_per_step': 2},
            'two-way': {'direction': 'two_way'},
            'rank 4, stitch lr x 30': {'stitch_rank': 4, 'stitch_lr': 30 * lr},
            'zeros as unused gradients': {'unused_grads': 'zero'},
            'protected anchors': {'protect_anchors': 0.5},
            'soft distillation': {'distill': 'soft', 'distill_alpha': 1.0, 'distill_tau': 2.0},
        },
        'epochs': {f'{passes:g} passes': {'passes': passes} for passes in (1.0, PASSES, 2 * PASSES)},
        'recipes': RECIPES[family],
    }


def main() -> None:
    """Runs the recipes of a table and prints their results."""
    parser = argparse.ArgumentParser(description='Compares recipes on a family of cifar10_family.py.')
    parser.add_argument('source', type=Path, help='folder of the sprites')
    parser.add_argument('target', type=Path, help="folder of the family's weights")
    parser.add_argument('--family', choices=FAMILIES, required=True)
    parser.add_argument('--count', type=int, default=2, help='how many anchors of the family to stitch (default: 2)')
    parser.add_argument('--table', choices=tables('vit'), required=True)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--half', action='store_true', help='evaluate on the first half of the images only')
    args = parser.parse_args()
    bench = Bench(args.source, args.target, args.family, args.count)
    rows = []
    for seed in args.seeds:
        for name, recipe in tables(args.family)[args.table].items():
            rows.append(bench.run(name, {**PAPER[args.family], **recipe}, seed, whole=not args.half))
            numbers = ', '.join(f'{key} {value:.2f}' for key, value in summary(rows[-1], 'select').items())
            print(f'{name} (seed {seed}): {numbers}; {rows[-1]["train_s"]} s', flush=True)
    for part in ('select',) if args.half else ('select', 'confirm'):
        print(report(rows, part))


if __name__ == '__main__':
    main()
