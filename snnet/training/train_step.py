"""One step of training: stitches drawn, run and distilled, gradients exchanged, weights moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from timm.data import Mixup
from timm.scheduler.scheduler import Scheduler
from timm.utils import dispatch_clip_grad
from torch import Tensor

from ..config.sections import option
from ..config.seeds_and_device import SeedSettings
from ..net.stitchable_net import StitchableNet
from ..reparam import Grower
from ..utils.distributed import Ranks
from ..utils.seeds import key, seed_libraries
from .anchor_teachers import AnchorTeachers
from .compute_settings import TrainComputeSettings
from .distillation import DistillationLoss
from .gradient_exchange import Active, Exchange
from .teacher_answers import Answers

DrawStitch = Callable[[int, int, int], int]
"""The stitch that is trained in a step, on a rank, in a turn."""


@dataclass
class UpdateSettings:
    """How gradients become an update of the weights."""

    grad_accum_steps: int = option(1, 'batches per update', least=1)
    clip_grad: float | None = option(None, 'clip gradients at this value')
    clip_mode: str = option('norm', 'norm, value or agc', choices=('norm', 'value', 'agc'))
    unused_grads: str = option(
        'none', "gradients of weights that take no part: 'none', or 'zero' as published", choices=('none', 'zero')
    )
    max_skips: int = option(10, 'updates in a row that may be left out because gradients are not finite', least=1)


class TrainBatch(NamedTuple):
    """Images of a step on their way into the net.

    Attributes:
        number: identifies the batch in the run; equal where the augmentations repeat.
        images: (N, C, H, W).
        targets: classes (N,).
    """

    number: int
    images: Tensor
    targets: Tensor


class TrainStep:
    """Moves what the drawn stitches use, and nothing else (SN-Net, Algorithm 1).

    Args:
        net: the network to train.
        ranks: each runs its own images; all end with equal weights.
        sampler: draws the stitches.
        stitches_per_step: stitches trained on each batch.
        criterion: loss of logits, targets and the teacher's answer.
        optimizer: moves the weights.
        schedule: sets its learning rates.
        settings: how gradients become an update.
        compute: how the net runs.
        seeds: of everything that is drawn.
        mixup: mixes images, if at all.
        answers: of the teacher, if there is one.
        protect: keeps anchors near what they were, if anything does.

    Attributes:
        grower: of branches, where some grow; it sees the gradients of every step that moves weights.
        skips: steps in a row that moved nothing because gradients were not finite.
    """

    def __init__(
        self,
        net: StitchableNet,
        ranks: Ranks,
        sampler: DrawStitch,
        stitches_per_step: int,
        criterion: DistillationLoss,
        optimizer: torch.optim.Optimizer,
        schedule: Scheduler,
        settings: UpdateSettings,
        compute: TrainComputeSettings,
        seeds: SeedSettings,
        mixup: Mixup | None = None,
        answers: Answers | None = None,
        protect: AnchorTeachers | None = None,
    ) -> None:
        self.net, self.ranks, self.sampler, self.stitches_per_step = net, ranks, sampler, stitches_per_step
        self.criterion, self.mixup, self.answers, self.protect = criterion, mixup, answers, protect
        self.optimizer, self.schedule = optimizer, schedule
        self.settings, self.compute, self.seeds = settings, compute, seeds
        half = compute.amp and compute.amp_dtype == 'float16'
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=half)
        self.grower: Grower | None = None
        self.note_parameters()
        self.skips = 0

    def __call__(
        self, step: int, batches: Sequence[TrainBatch], asks: Sequence[bool]
    ) -> tuple[dict[str, Any], list[bool]]:
        """One update.

        Args:
            step: its number, from 0; with the seed it decides every draw.
            batches: `grad_accum_steps` of them.
            asks: what this rank asks for, such as to stop.

        Returns:
            A row for the log, and which of the things at least one rank asks for. The row is the same on all ranks,
            except for the stitch where each rank draws a different one.

        Raises:
            LostRanks: another rank is gone.
        """
        self.schedule.step_update(step)
        drawn = self._drawn(step)
        active = self.exchange.active(drawn)
        before = [statistic.clone() for statistic in active.statistics]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._gradients(step, batches, drawn[self.ranks.rank], active)
        numbers = torch.cat([loss.double().view(1), torch.tensor([*map(float, asks)], device=loss.device)])
        mean, *asked = self.exchange.average(active, numbers).tolist()
        if finite := self._move(active):
            self.skips = 0
        else:
            self.skips += 1
            for statistic, old in zip(active.statistics, before, strict=True):
                statistic.copy_(old)  # what the BatchNorms saw was not finite either
        rates = [group['lr'] for group in self.optimizer.param_groups]
        own = drawn[self.ranks.rank]
        row = {
            'step': step,
            'stitch': own[0] if len(own) == 1 else own,
            'loss': mean if math.isfinite(mean) else None,
            'lr': rates[0],
            'stitch_lr': rates[-1],
            **({} if finite else {'skipped': True}),
        }
        return row, [share > 0 for share in asked]

    def prepared(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Images and targets (classes, or shares of classes) as the net sees them: mixed, and on the device."""
        images, targets = (x.to(self.ranks.device, non_blocking=True) for x in (batch.images, batch.targets))
        if self.compute.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.mixup is not None:
            seed_libraries(key(self.seeds.of_data, 'mixup', batch.number, self.ranks.rank))
            images, targets = self.mixup(images, targets)
        return images, targets

    def note_parameters(self) -> None:
        """Finds out what there is to move: at the start, and whenever the net's parameters have been replaced."""
        self.exchange = Exchange(self.net, self.ranks)

    def flush(self) -> None:
        """Writes what must be on the disk before a checkpoint is."""
        if self.answers is not None:
            self.answers.flush()

    def _drawn(self, step: int) -> list[list[int]]:
        """The stitches of each rank, known to all of them because draws depend on seed and place alone."""
        turns = range(self.stitches_per_step)
        return [[self.sampler(step, rank, turn) for turn in turns] for rank in range(self.ranks.world)]

    def _gradients(self, step: int, batches: Sequence[TrainBatch], stitches: Sequence[int], active: Active) -> Tensor:
        """Adds up gradients of the mean loss over batches and stitches, and begins to send them; returns that loss."""
        device = self.ranks.device
        total = torch.zeros((), device=device)
        share = 1 / (len(batches) * len(stitches))
        for place, batch in enumerate(batches):
            images, targets = self.prepared(batch)
            with self.compute.autocast(device):
                answer = None if self.answers is None else self.answers(batch.number, images)
            for turn, stitch in enumerate(stitches):
                # what drop path and dropout draw
                seed_libraries(key(self.seeds.seed, 'forward', step, place, self.ranks.rank, turn))
                with self.compute.autocast(device):
                    logits = self.net(images, stitch=stitch)
                    loss = self.criterion(logits, targets, answer)
                    if self.protect is not None:
                        loss = self.protect(stitch, images, logits, loss)
                last = place == len(batches) - 1 and turn == len(stitches) - 1
                with active.gradients.sending() if last else nullcontext():
                    self.scaler.scale(loss * share).backward()
                total += loss.detach() * share
        return total

    def _move(self, active: Active) -> bool:
        """Moves the weights if all gradients are finite, which the exchange has made the same on all ranks."""
        moved = [parameter for parameter in active.parameters if parameter.grad is not None]
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in moved if p.grad is not None])
        finite = bool(norm.isfinite())
        if finite and self.grower is not None:
            self.grower.observe()
        if finite and self.settings.clip_grad is not None:
            dispatch_clip_grad(moved, self.settings.clip_grad, mode=self.settings.clip_mode)
        if finite and self.settings.unused_grads == 'zero':
            for parameter in self.net.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return finite
