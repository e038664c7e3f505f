"""One step of training: stitches drawn, run and distilled, gradients exchanged, weights moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn

from .config import TrainSettings
from .distill import DistillationLoss, make_teacher
from .distributed import Ranks
from .exchange import Active, Exchange
from .modes import autocast
from .net import StitchableNet
from .optim import make_optimizer, make_schedule
from .protect import AnchorTeachers
from .sample import make_sampler
from .seeds import key, seed_libraries


class Step:
    """Moves what the drawn stitches use, and nothing else (SN-Net, Algorithm 1).

    Args:
        settings: of the run.
        net: is trained.
        ranks: each runs its own images; all end with equal weights.
        updates: steps an epoch, for the schedule.
    """

    def __init__(self, settings: TrainSettings, net: StitchableNet, ranks: Ranks, updates: int) -> None:
        self.settings, self.net, self.ranks = settings, net, ranks
        self.data_seed = settings.seed if settings.data_seed is None else settings.data_seed
        trainable = [i for i, s in enumerate(net.stitches) if s.layers or not settings.freeze_anchors]
        self.sampler = make_sampler(settings, net, trainable)
        self.criterion, self.mixup = _make_criterion(settings, net, ranks)
        self.protect = AnchorTeachers(net, settings.protect_anchors) if settings.protect_anchors else None
        self.optimizer = make_optimizer(net, settings)
        self.schedule = make_schedule(self.optimizer, settings, updates)
        half = settings.amp and settings.amp_dtype == 'float16'
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=half)
        self.exchange = Exchange(net, ranks)
        self.skips = 0

    def __call__(self, step: int, batches: Sequence[Any], asks: Sequence[bool]) -> tuple[dict[str, Any], list[bool]]:
        """One update.

        Args:
            step: its number, from 0; with the seed it decides every draw.
            batches: pairs of images (N, C, H, W) and classes (N,), `grad_accum_steps` of them.
            asks: wishes of this rank, such as to stop.

        Returns:
            A row for the log, and which wishes at least one rank has; both are the same on all ranks.

        Raises:
            LostRanks: another rank is gone.
        """
        self.schedule.step_update(step)
        drawn = self._drawn(step)
        active = self.exchange.active(stitch for stitches in drawn for stitch in stitches)
        before = [statistic.clone() for statistic in active.statistics]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._gradients(step, batches, drawn[self.ranks.rank])
        numbers = torch.cat([loss.double().view(1), torch.tensor([*map(float, asks)], device=loss.device)])
        mean, *wishes = self.exchange.average(active, numbers).tolist()
        if finite := self._move(active):
            self.skips = 0
        else:
            self.skips += 1
            for statistic, old in zip(active.statistics, before, strict=True):
                statistic.copy_(old)  # what batch norms saw was not finite either
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
        return row, [wish > 0 for wish in wishes]

    def _drawn(self, step: int) -> list[list[int]]:
        """The stitches of each rank; no rank needs to be asked, for draws depend on nothing but seed and place."""
        turns = range(self.settings.stitches_per_step)
        return [[self.sampler(step, rank, turn) for turn in turns] for rank in range(self.ranks.world)]

    def _gradients(self, step: int, batches: Sequence[Any], stitches: Sequence[int]) -> Tensor:
        """Adds up gradients of the mean loss over batches and stitches; returns that loss."""
        settings, device = self.settings, self.ranks.device
        total = torch.zeros((), device=device)
        share = 1 / (len(batches) * len(stitches))
        for number, (images, targets) in enumerate(batches, start=step * len(batches)):
            images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            if settings.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            if self.mixup is not None:
                seed_libraries(key(self.data_seed, 'mixup', number, self.ranks.rank))
                images, targets = self.mixup(images, targets)
            for turn, stitch in enumerate(stitches):
                seed_libraries(key(settings.seed, 'forward', number, self.ranks.rank, turn))  # drop path and dropout
                with autocast(settings.amp, settings.amp_dtype, device):
                    logits = self.net(images, stitch=stitch)
                    loss = self.criterion(images, logits, targets)
                    if self.protect is not None:
                        loss = self.protect(stitch, images, logits, loss)
                self.scaler.scale(loss * share).backward()
                total += loss.detach() * share
        return total

    def _move(self, active: Active) -> bool:
        """Moves the weights if all gradients are finite, which the exchange has made the same on all ranks."""
        moved = [parameter for parameter in active.parameters if parameter.grad is not None]
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in moved if p.grad is not None])
        finite = bool(norm.isfinite())
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


def _make_criterion(settings: TrainSettings, net: StitchableNet, ranks: Ranks) -> tuple[nn.Module, Mixup | None]:
    base: nn.Module = nn.CrossEntropyLoss()
    mixup = None
    if settings.mixup > 0 or settings.cutmix > 0:
        mixup = Mixup(
            settings.mixup, settings.cutmix, prob=settings.mixup_prob, switch_prob=settings.mixup_switch_prob,
            label_smoothing=settings.smoothing, num_classes=net.num_classes,
        )  # fmt: skip
        base = SoftTargetCrossEntropy()
    elif settings.smoothing > 0:
        base = LabelSmoothingCrossEntropy(settings.smoothing)
    teacher = None if settings.teacher == 'none' else make_teacher(settings.teacher, net)
    loss = DistillationLoss(base, teacher, settings.distill, settings.distill_alpha, settings.distill_tau)
    return loss.to(ranks.device), mixup
