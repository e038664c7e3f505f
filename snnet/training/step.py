"""One step of training: stitches drawn, run and distilled, gradients exchanged, weights moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn

from ..config.parse import TrainSettings
from ..data.datasets import TrainImages
from ..errors import SnnetError
from ..net.stitchable_net import StitchableNet
from ..reparam import Grower
from ..utils.distributed import Ranks
from ..utils.modes import autocast
from ..utils.seeds import key, seed_libraries
from .anchor_teachers import AnchorTeachers
from .answer_store import Store
from .distillation import DistillationLoss, Question, teacher_maker
from .gradient_exchange import Active, Exchange
from .optimizer import make_optimizer, make_schedule
from .samplers import make_sampler
from .teacher_answers import Answers, fingerprint


class Batch(NamedTuple):
    """Images of a step.

    Attributes:
        number: tells batches of the run apart; equal where the augmentations repeat.
        images: (N, C, H, W).
        targets: classes (N,).
    """

    number: int
    images: Tensor
    targets: Tensor


class Step:
    """Moves what the drawn stitches use, and nothing else (SN-Net, Algorithm 1).

    Args:
        settings: of the run.
        net: is trained.
        ranks: each runs its own images; all end with equal weights.
        images: tell how long an epoch is.

    Attributes:
        updates: steps an epoch.
        grower: of branches, where some grow; it sees the gradients of every step that moves weights.

    Raises:
        SnnetError: settings that do not go together; an epoch has fewer batches than one step needs.
    """

    def __init__(self, settings: TrainSettings, net: StitchableNet, ranks: Ranks, images: TrainImages) -> None:
        self.settings, self.net, self.ranks = settings, net, ranks
        self.updates = len(images) // settings.grad_accum_steps
        if self.updates == 0:
            raise SnnetError(
                f'an epoch has {len(images)} batches, fewer than the {settings.grad_accum_steps} of one update: '
                f'lower --grad-accum-steps or --batch-size'
            )
        moving = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
        trainable = [i for i in range(len(net.stitches)) if moving & net.parameter_names(i)]
        if not trainable:
            raise SnnetError(f'there is nothing to train: {net.title} is frozen and has no stitch layers')
        self.sampler = make_sampler(settings, net, trainable)
        self.criterion, self.mixup = _make_criterion(settings, net, ranks)
        self.answers = _make_answers(settings, net, ranks, images)
        self.protect = AnchorTeachers(net, settings.protect_anchors) if settings.protect_anchors else None
        self.optimizer = make_optimizer(net, settings)
        self.schedule = make_schedule(self.optimizer, settings, self.updates)
        half = settings.amp and settings.amp_dtype == 'float16'
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=half)
        self.grower: Grower | None = None
        self.follow()
        self.skips = 0

    def __call__(self, step: int, batches: Sequence[Batch], asks: Sequence[bool]) -> tuple[dict[str, Any], list[bool]]:
        """One update.

        Args:
            step: its number, from 0; with the seed it decides every draw.
            batches: `grad_accum_steps` of them.
            asks: wishes of this rank, such as to stop.

        Returns:
            A row for the log (the same on all ranks but for the stitch, where each draws its own), and which wishes at
            least one rank has.

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

    def prepared(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images and targets (classes, or shares of classes) as the net is shown them: mixed up, on the device."""
        images, targets = (x.to(self.ranks.device, non_blocking=True) for x in (batch.images, batch.targets))
        if self.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.mixup is not None:
            seed_libraries(key(self.settings.seed_of_data, 'mixup', batch.number, self.ranks.rank))
            images, targets = self.mixup(images, targets)
        return images, targets

    def follow(self) -> None:
        """Takes note of the net's parameters, at the start and whenever there are others."""
        self.exchange = Exchange(self.net, self.ranks)

    def flush(self) -> None:
        """Writes what must be on the disk before a checkpoint is."""
        if self.answers is not None:
            self.answers.flush()

    def _drawn(self, step: int) -> list[list[int]]:
        """The stitches of each rank; no rank needs to be asked, for draws depend on nothing but seed and place."""
        turns = range(self.settings.stitches_per_step)
        return [[self.sampler(step, rank, turn) for turn in turns] for rank in range(self.ranks.world)]

    def _gradients(self, step: int, batches: Sequence[Batch], stitches: Sequence[int]) -> Tensor:
        """Adds up gradients of the mean loss over batches and stitches; returns that loss."""
        settings, device = self.settings, self.ranks.device
        total = torch.zeros((), device=device)
        share = 1 / (len(batches) * len(stitches))
        for place, batch in enumerate(batches):
            images, targets = self.prepared(batch)
            with autocast(settings.amp, settings.amp_dtype, device):
                answer = None if self.answers is None else self.answers(batch.number, images)
            for turn, stitch in enumerate(stitches):
                # what drop path and dropout draw
                seed_libraries(key(settings.seed, 'forward', step, place, self.ranks.rank, turn))
                with autocast(settings.amp, settings.amp_dtype, device):
                    logits = self.net(images, stitch=stitch)
                    loss = self.criterion(logits, targets, answer)
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


def _make_criterion(settings: TrainSettings, net: StitchableNet, ranks: Ranks) -> tuple[DistillationLoss, Mixup | None]:
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
    return DistillationLoss(base, settings.distill_alpha, settings.distill_tau).to(ranks.device), mixup


def _make_answers(settings: TrainSettings, net: StitchableNet, ranks: Ranks, images: TrainImages) -> Answers | None:
    """The teacher's answers, from the store where one is named; None without a teacher."""
    question = Question(settings.distill, settings.distill_topk, settings.distill_tau)
    if settings.teacher == 'none':
        return None
    make = teacher_maker(settings.teacher, net)
    store = None
    if settings.teacher_store:
        identity = fingerprint(settings, net, images.dataset, ranks.world)
        store = Store(Path(settings.teacher_store), identity, ranks.rank)
    epochs = min(settings.epochs, settings.teacher_epochs or settings.epochs)
    return Answers(lambda: make().to(ranks.device), question, store, range(epochs * len(images)))
