"""Part 5: three vision transformers trained from scratch on CIFAR-10, stitched, and trained together by two recipes."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import nn

import snnet
from benchmarks.gpu.cifar_images import MEAN, STD, batches, load, normalized
from benchmarks.gpu.clock import took
from benchmarks.gpu.part import Options, Report
from benchmarks.gpu.pieces import save_in_pieces
from snnet.budget.frontier import area, mixing_accuracy
from snnet.budget.plot import draw_curve
from snnet.calibration.initialize import initialize
from snnet.config.sections import from_flat
from snnet.net.shared_prefixes import all_logits
from snnet.training.make_step import make_step
from snnet.training.recipes import RECIPES
from snnet.training.teacher import Teacher
from snnet.training.teacher_answers import Answers
from snnet.training.train_settings import TrainSettings
from snnet.training.train_step import TrainBatch, TrainStep
from snnet.training.weight_average import make_average
from snnet.utils.distributed import Ranks
from snnet.utils.seeds import key, seed_libraries

WIDTHS, WANTED, SHARES = (96, 192, 384), (80, 84, 87), (0.2, 0.3, 0.5)
"""Of the anchors: width, top-1 to reach, and share of the time."""
ANCHOR_TIME, RUN_TIME = 0.55, 0.09
"""Shares of the part's time for the three anchors together, and for each run of the net."""
COMMON: dict[str, Any] = {
    'epochs': 10, 'warmup_epochs': 1, 'min_lr': 0.0, 'lr': 1e-4, 'weight_decay': 0.05, 'drop_path': 0.0,
    'mixup': 0.8, 'cutmix': 1.0, 'smoothing': 0.1, 'teacher': 'none', 'anchors': 'made here',
}  # fmt: skip
"""An epoch is a tenth of the steps."""
OURS = {**RECIPES['snnet'], 'sampler': 'uniform', 'stitch_lr': 3e-3, 'model_ema_decay': 0.99, 'recalibrate': 0}
"""As the transformers of docs/results/family.md are trained: slow anchors, a moving average of the weights."""
RUNS: dict[str, dict[str, Any]] = {
    'paper': RECIPES['paper'],
    'ours': OURS,
    'ours, large to small': {**OURS, 'direction': 'slow_to_fast'},
}


class Family:
    """The images, the anchors, and what is done with them."""

    def __init__(self, options: Options, report: Report) -> None:
        self.options, self.report, self.device = options, report, torch.device(options.device)
        self.seconds = report.seconds_left
        self.batch = 8 if options.tiny else 256
        self.train, self.test = load(options.data, self.device, options.tiny)
        where = 'CIFAR-10' if options.data else 'generated'
        report.note(f'{len(self.train.images)} training and {len(self.test.images)} test images ({where})')

    def autocast(self) -> AbstractContextManager[Any]:
        """In bfloat16 on a GPU."""
        return torch.autocast('cuda', torch.bfloat16) if self.device.type == 'cuda' else nullcontext()

    def source(self, width: int) -> snnet.Source:
        """How timm makes a plain vision transformer of depth 12, patch 4."""
        small = {'depth': 2, 'patch_size': 8} if self.options.tiny else {'depth': 12, 'patch_size': 4}
        width = width // 6 if self.options.tiny else width
        shape = {'img_size': 32, 'embed_dim': width, 'num_heads': max(1, width // 32), 'num_classes': 10}
        return snnet.Source('vit_tiny_patch16_224', {**shape, **small})

    def network(self, width: int) -> nn.Module:
        """It, with normalization for these images."""
        source = self.source(width)
        model: Any = timm.create_model(source.model, **source.args)
        model.pretrained_cfg = {**model.pretrained_cfg, 'mean': MEAN, 'std': STD, 'crop_pct': 1.0}
        moved: nn.Module = model.to(self.device)
        return moved

    def train_anchor(self, width: int, wanted: float, seconds: float) -> nn.Module:
        """One cycle of the learning rate over as many steps as the seconds allow."""
        seed_libraries(key(0, 'anchor', width))
        model = self.network(width).train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05, fused=self.device.type == 'cuda')
        mixup = Mixup(0.8, 1.0, prob=0.5, label_smoothing=0.1, num_classes=10)
        loss_of, images = SoftTargetCrossEntropy(), batches(self.train, self.batch, f'anchor {width}')

        def step() -> None:
            x, shares = mixup(*next(images))
            with self.autocast():
                loss = loss_of(model(x), shares)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        for group in optimizer.param_groups:
            group['lr'] = 0.0  # the first steps only show how long one takes
        few = 2 if self.options.tiny else 20

        def few_steps() -> None:
            for _ in range(few):
                step()

        few_steps()  # warm
        each = took(few_steps, self.device) / few
        total = 4 if self.options.tiny else max(100, int(seconds / each))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total, pct_start=0.15)
        for _ in range(total):
            step()
            schedule.step()
        top1 = self.top1(model.eval())
        self.report.row(
            'Anchors', width=width, parameters_M=sum(p.numel() for p in model.parameters()) / 1e6, steps=total,
            epochs=total * self.batch / len(self.train.images), ms_per_step=1e3 * each, top1=top1, wanted=wanted,
        )  # fmt: skip
        return model

    @torch.inference_mode()
    def top1(self, model: nn.Module) -> float:
        """Percent of the test images that are right."""
        with self.autocast():
            answers = [model(normalized(part)).argmax(1) for part in self.test.images.split(250)]
        return 100 * float((torch.cat(answers) == self.test.classes).float().mean())

    def build(self, anchors: list[nn.Module], recipe: dict[str, Any]) -> snnet.StitchableNet:
        """The stitched net, initialized by least squares on clean training images."""
        names = [f'vit{width}' for width in WIDTHS]
        sources = [self.source(width) for width in WIDTHS]  # older releases of timm note nothing in a network
        lines = [
            snnet.as_anchor(copy.deepcopy(model).cpu(), name, source=source)
            for model, name, source in zip(anchors, names, sources, strict=True)
        ]
        net = snnet.create_stitchable_net(lines, pretrained=False, direction=recipe['direction']).to(self.device)
        samples = 8 if self.options.tiny else recipe['init_samples']
        order = torch.randperm(len(self.train.images), generator=torch.Generator().manual_seed(0))[:samples]
        clean = normalized(self.train.images[order.to(self.device)])
        initialize(net.eval(), clean.split(100), samples, recipe['init'])
        return net

    def steps_of(self, step: TrainStep) -> Iterator[TrainBatch]:
        """Batches for the joint training, the same for every recipe."""
        for number, (x, y) in enumerate(batches(self.train, self.batch, 'joint')):
            yield TrainBatch(number, x, y)

    def make(self, net: snnet.StitchableNet, recipe: dict[str, Any], total: int) -> TrainStep:
        """The step of a recipe, with the largest anchor as the teacher."""
        amp = {'amp': self.device.type == 'cuda', 'device': self.options.device}
        settings = from_flat(TrainSettings, {**COMMON, **recipe, **amp})
        updates = range(max(1, total // settings.schedule.epochs))
        step = make_step(settings, net.train(), Ranks(0, 1, self.device), updates)  # type: ignore[arg-type]
        copied = net.anchor(f'vit{WIDTHS[-1]}').duplicate()
        teacher = Teacher(copied, MEAN, STD, MEAN, STD).to(self.device)
        step.answers = Answers(lambda: teacher, settings.distillation.question)
        return step

    def run(self, anchors: list[nn.Module], name: str, recipe: dict[str, Any], total: int) -> None:
        """Trains by a recipe, evaluates and saves."""
        net = self.build(anchors, recipe)
        if name == 'paper':
            self.evaluate(copy.deepcopy(net), 'least squares alone')  # training takes accuracies away
        step = self.make(net, recipe, total)
        settings = from_flat(TrainSettings, {**COMMON, **recipe})
        average = make_average(settings.average, net)

        def take() -> None:
            for number, batch in enumerate(islice(self.steps_of(step), total)):
                step(number, [batch], [])
                if average is not None:
                    average.update(net, number + 1)

        seconds = took(take, self.device)
        self.report.note(f'{name}: {total} steps of {self.batch} images in {seconds:.0f} s')
        trained: snnet.StitchableNet = average.module if average is not None else net
        self.evaluate(trained.eval(), name)

    @torch.inference_mode()
    def evaluate(self, net: snnet.StitchableNet, name: str) -> None:
        """All stitches on the test images: records, table, curve and files."""
        ids = range(len(net.stitches))
        right = torch.zeros(len(ids), device=self.device)
        for x, y in zip(self.test.images.split(250), self.test.classes.split(250), strict=True):
            with self.autocast():
                for i, logits in all_logits(net, normalized(x), ids, 512):
                    right[i] += (logits.argmax(1) == y).sum()
        tops: list[float] = (100 * right / len(self.test.images)).tolist()
        net.records = [replace(r, top1=t, n=len(self.test.images)) for r, t in zip(net.records, tops, strict=True)]
        others = [r for r in net.records if not r.anchor]
        better = sum((r.top1 or 0.0) > (mixing_accuracy(net.records, r.flops or 0) or 0.0) for r in others)
        self.report.row(
            f'The net of {len(ids)} stitches on {len(self.test.images)} test images', recipe=name,
            area_under_the_frontier=area(net.records), mean=statistics.fmean(tops),
            anchors=', '.join(f'{t:.1f}' for t in tops[: len(net.anchors)]),
            beat_mixing=f'{better} of {len(others)}',
        )  # fmt: skip
        for record in net.records:
            gmacs = (record.flops or 0) / 1e9
            self.report.row(f'Every stitch: {name}', id=record.stitch, legs=record.legs, GMACs=gmacs, top1=record.top1)
        file = name.replace(' ', '_').replace(',', '')
        with self.report.trying('the curve'):
            draw_curve(net.records, Path(self.options.out) / f'curve_{file}', name)
        with self.report.trying('saving'):
            save_in_pieces(net, Path(self.options.out) / f'net_{file}')


def run(options: Options, report: Report) -> None:
    """Anchors, then the net by each recipe at equal steps."""
    family = Family(options, report)
    anchors = [
        family.train_anchor(width, wanted, ANCHOR_TIME * share * family.seconds)
        for width, wanted, share in zip(WIDTHS, WANTED, SHARES, strict=True)
    ]
    total = 4 if options.tiny else steps_within(family, anchors, RUN_TIME * family.seconds)
    for name, recipe in RUNS.items():
        if name in ('paper', 'ours') or options.tiny or report.seconds_left > 1.6 * RUN_TIME * family.seconds:
            with report.trying(f'the net by the recipe {name}'):
                family.run(anchors, name, recipe, total)


def steps_within(family: Family, anchors: list[nn.Module], seconds: float) -> int:
    """How many steps of the joint training take so long."""
    step, few = family.make(family.build(anchors, RUNS['paper']), RUNS['paper'], 100), 15
    images = family.steps_of(step)

    def take() -> None:
        for number in range(few):
            step(number, [next(images)], [])

    took(take, family.device)
    return max(20, int(few * seconds / took(take, family.device)))
