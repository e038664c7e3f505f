"""Part 3: the training step of the DeiT recipe in variants, and what bounds 50 epochs of ImageNet."""

from __future__ import annotations

import copy
import gc
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, distributed as dist, nn

import snnet
from benchmarks.gpu.clock import forget_peak, matrix_peak, peak_gigabytes, per_second, took
from benchmarks.gpu.part import Options, Report, in_a_sentence
from benchmarks.loading import images_per_second, write_photographs
from snnet.anchors.names import resolve
from snnet.config.sections import from_flat
from snnet.data.train_images import TrainImages
from snnet.training.answer_store import Store
from snnet.training.make_step import make_step
from snnet.training.samplers import StratifiedSampler
from snnet.training.teacher import Teacher
from snnet.training.teacher_answers import Answers
from snnet.training.train_settings import TrainSettings
from snnet.training.train_step import TrainBatch, TrainStep
from snnet.utils.distributed import Ranks

RECIPE: dict[str, Any] = {
    'epochs': 50, 'lr': 1e-4, 'weight_decay': 0.05, 'drop_path': 0.1, 'mixup': 0.8, 'cutmix': 1.0, 'smoothing': 0.1,
    'teacher': 'none', 'pretrained': False, 'aa': 'rand-m9-mstd0.5-inc1', 'reprob': 0.25, 'aug_repeats': 3,
}  # fmt: skip
"""configs/deit_ti_s_b.yaml; the teacher is made here, because its weights play no role."""
SHOWN = 50 * 1_281_167
"""Images that 50 epochs of ImageNet show."""
TEACHER_GMACS = 15.9e9
SAME = ((0.5,) * 3,) * 4


@dataclass(frozen=True)
class Variant:
    """One way of taking the step."""

    name: str
    amp: bool = True
    teacher: str = 'live'
    ddp: bool = False
    compiled: bool = False
    fused: bool = False
    channels_last: bool = False


BASE = Variant('bf16, live teacher, eager')
BEST = Variant('bf16, stored teacher, compiled, fused', teacher='stored', compiled=True, fused=True)
EAGER = (
    BASE,
    replace(BASE, name='stored teacher', teacher='stored'),
    replace(BASE, name='plain DDP with find_unused_parameters', ddp=True),
    replace(BASE, name='fused optimizer', fused=True),
    replace(BASE, name='teacher in channels_last', channels_last=True),
    replace(BASE, name='float32', amp=False),
)
COMPILED = (replace(BASE, name='compiled blocks', compiled=True), BEST)


class Bench:
    """The net, the teacher and the images of one batch size.

    Args:
        options: of the command line.
        report: of the part.
    """

    def __init__(self, options: Options, report: Report) -> None:
        self.options, self.report, self.device = options, report, torch.device(options.device)
        own: dict[str, Any] = {'anchors': 'test_vit,test_vit2', 'img_size': 32} if options.tiny else {}
        self.flat = {**RECIPE, 'anchors': 'deit_tiny,deit_small,deit_base', **own, 'device': options.device}
        torch.manual_seed(0)
        self.net = snnet.create_stitchable_net(
            self.flat['anchors'], pretrained=False, img_size=own.get('img_size'), drop_path_rate=0.1
        )
        name = 'test_resnet' if options.tiny else resolve('regnety_160').model
        self.teacher = Teacher(timm.create_model(name, num_classes=self.net.num_classes), *SAME).to(self.device)

    def choose(self, batch: int, steps: int, together: int = 1) -> None:
        """Sets the images per update, in how many passes they go, and how many stitches are timed."""
        self.batch, self.steps, self.together = batch, steps, together
        # a few batches in turn: generated ones, so that no loader is timed
        self.images = [torch.randn(batch // together, *self.net.input_size, device=self.device) for _ in range(2)]
        self.labels = torch.randint(self.net.num_classes, (batch // together,), device=self.device)
        sampler = StratifiedSampler(0, False, 1, tuple(range(len(self.net.stitches))))
        self.drawn = [sampler(i) for i in range(steps)]

    def gmacs(self, live: bool) -> float:
        """Multiply-adds per image of the drawn stitches, forward and backward, and of the teacher."""
        student = sum(self.net.records[i].flops or 0 for i in self.drawn) / len(self.drawn)
        return 3 * student + (TEACHER_GMACS if live and not self.options.tiny else 0)

    def step(self, variant: Variant, folder: Path) -> Callable[[int], object]:
        """A function that takes the step with a number."""
        chosen = {'grad_accum_steps': self.together, 'amp': variant.amp, 'fused': variant.fused}
        settings = from_flat(TrainSettings, {**self.flat, **chosen})
        net = copy.deepcopy(self.net).to(self.device).train()
        step = make_step(settings, net, Ranks(0, 1, self.device), range(self.steps * self.together))  # type: ignore[arg-type]
        step.sampler = lambda number, rank, turn: self.drawn[number % self.steps]
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        teacher = copy.deepcopy(self.teacher).to(memory_format=layout)
        store = Store(folder, {}) if variant.teacher == 'stored' else None
        step.answers = Answers(
            lambda: teacher, settings.distillation.question, store, range(self.steps * self.together)
        )
        step.compute = replace(step.compute, channels_last=variant.channels_last)
        if variant.compiled:
            self.report.note(f'{variant.name}: blocks are being compiled')  # what a cut part was busy with
            snnet.compile_blocks(net, 'inductor' if self.device.type == 'cuda' else 'eager')
            with step.compute.autocast(self.device):
                snnet.warm_up(net, self.images[0], quiet=True)
        if variant.ddp:
            return self._plain(step)
        return lambda number: step(number, self._batches(number), [])

    def _batches(self, number: int) -> list[TrainBatch]:
        """Of one update; the same again after all stitches have had their turn, so that answers can be stored."""
        first = number % self.steps * self.together
        numbers = range(first, first + self.together)
        return [TrainBatch(place, self.images[place % len(self.images)], self.labels) for place in numbers]

    def _plain(self, step: TrainStep) -> Callable[[int], object]:
        """What one writes without this package: torch's wrapper finds out in every step what is unused."""
        wrapped = nn.parallel.DistributedDataParallel(step.net, find_unused_parameters=True)

        def take(number: int) -> None:
            (batch,) = self._batches(number)
            images, targets = step.prepared(batch)
            step.optimizer.zero_grad(set_to_none=True)
            with step.compute.autocast(self.device):
                answer = step.answers(batch.number, images) if step.answers else None
                loss = step.criterion(wrapped(images, stitch=self.drawn[number % self.steps]), targets, answer)
            loss.backward()
            step.optimizer.step()

        return take


def run(options: Options, report: Report) -> None:
    """Measures all variants at two batch sizes, the parts by themselves, and the loader."""
    device = torch.device(options.device)
    peak = matrix_peak(device, 256 if options.tiny else 8192)
    report.note(f'a large bfloat16 matrix product runs at {peak / 1e12:.4g} TMAC/s, the limit of the card here')
    with tempfile.TemporaryDirectory() as folder:
        with report.trying('the process group of plain DDP'):  # nothing else needs it
            backend = 'nccl' if device.type == 'cuda' else 'gloo'
            dist.init_process_group(backend, f'file://{folder}/store', rank=0, world_size=1)
        rates: dict[str, float] = {}
        bench = Bench(options, report)
        for place, (batch, steps, variants) in enumerate(plan(options)):
            with report.trying(f'batch {batch}'):
                bench.choose(batch, steps)
                for variant in variants:
                    if variant.compiled and not report.can_compile(variant.name, options.tiny):
                        continue
                    with report.trying(f'{variant.name} at batch {batch}'):
                        rate = fitting(bench, variant, Path(folder) / f'answers{batch}', peak, report)
                        rates[variant.name] = max(rate, rates.get(variant.name, 0.0))
                if place == 0:
                    rates |= alone(bench, report)
            if place == 1:  # before what compiles, which may take the rest of the time
                with report.trying('the loader'):
                    rates['the loader alone'] = loader(options, Path(folder), report)
                state_bound(rates, report)
        if dist.is_initialized():
            dist.destroy_process_group()


def plan(options: Options) -> tuple[tuple[int, int, Sequence[Variant]], ...]:
    """Batch sizes, steps and variants."""
    if options.tiny:
        return (4, 3, EAGER), (8, 2, (BASE,)), (4, 3, COMPILED)
    return (128, 24, EAGER), (1024, 6, (BASE,)), (128, 24, COMPILED), (1024, 6, (BEST,))


def fitting(bench: Bench, variant: Variant, folder: Path, peak: float, report: Report) -> float:
    """Images per second of a variant; in four passes per update where the memory does not hold the batch."""
    try:
        return measure(bench, variant, folder, peak, report)
    except torch.OutOfMemoryError as error:
        report.note(f'{variant.name}: {bench.batch} images do not fit at once ({in_a_sentence(error)})')
    gc.collect()
    bench.choose(bench.batch, bench.steps, 4)
    return measure(bench, variant, folder.with_suffix('.parts'), peak, report)


def measure(bench: Bench, variant: Variant, folder: Path, peak: float, report: Report) -> float:
    """Images per second of a variant."""
    take = bench.step(variant, folder)
    for number in range(bench.steps):  # every stitch once: fills the store, and warms up
        take(number)
    forget_peak(bench.device)

    def steps() -> None:
        for number in range(bench.steps, 2 * bench.steps):
            take(number)

    seconds = took(steps, bench.device)
    rate = bench.steps * bench.batch / seconds
    live = variant.teacher == 'live'
    report.row(
        f'The step of the DeiT recipe, {bench.steps} stitches', batch=bench.batch, passes=bench.together,
        way=variant.name, ms_per_step=1e3 * seconds / bench.steps, images_per_s=rate,
        percent_of_the_card=100 * bench.gmacs(live) * rate / peak, hours_for_50_epochs=SHOWN / rate / 3600,
        peak_GB=peak_gigabytes(bench.device),
    )  # fmt: skip
    return rate


def alone(bench: Bench, report: Report) -> dict[str, float]:
    """Images per second of the teacher alone, in both layouts."""
    found = {}
    for layout, memory in (('contiguous', torch.contiguous_format), ('channels_last', torch.channels_last)):
        teacher: nn.Module = copy.deepcopy(bench.teacher).to(memory_format=memory)
        x: Tensor = bench.images[0].contiguous(memory_format=memory)
        with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16):
            rate = per_second(lambda teacher=teacher, x=x: teacher(x), bench.device, len(x))  # type: ignore[misc]
        report.row('The teacher alone, bf16', batch=bench.batch, layout=layout, images_per_s=rate)
        found[f'the teacher alone, {layout}'] = rate
    return found


def loader(options: Options, folder: Path, report: Report) -> float:
    """Images per second that all cores decode and augment, JPEG files of ImageNet's usual size."""
    workers, count, batch = (0, 8, 4) if options.tiny else (len(os.sched_getaffinity(0)), 4096, 128)
    write_photographs(folder / 'images', min(count, 256))
    for path in [*(folder / 'images').rglob('*.jpg')]:
        for copied in range(1, count // 256):
            os.link(path, path.with_stem(f'{path.stem}-{copied}'))
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=4, img_size=224)
    chosen = {**RECIPE, 'data_dir': str(folder / 'images'), 'batch_size': batch, 'workers': workers}
    settings = from_flat(TrainSettings, chosen)
    ranks = Ranks(0, 1, torch.device('cpu'))
    images = TrainImages(settings.data, settings.augmentation, 0, folder, net, ranks)
    images_per_second(lambda: images.epoch(0))  # starts the processes
    rate = images_per_second(lambda: images.epoch(1))
    report.row('The loader alone', processes=workers, images=count, images_per_s=rate)
    return rate


def state_bound(rates: dict[str, float], report: Report) -> None:
    """Says what bounds 50 epochs on this machine."""
    stages = {name: rate for name, rate in rates.items() if 'alone' in name or name in (BASE.name, 'stored teacher')}
    if not stages:
        return
    for name, rate in sorted(stages.items(), key=lambda pair: pair[1]):
        report.row('50 epochs of ImageNet', what=name, images_per_s=rate, hours=SHOWN / rate / 3600)
    slowest = min(stages, key=lambda name: stages[name])
    report.note(f'the bound of 50 epochs of ImageNet here: {slowest}, {SHOWN / stages[slowest] / 3600:.3g} hours')
