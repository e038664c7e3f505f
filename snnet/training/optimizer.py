"""Optimizer and schedule of a net: timm's, with a learning rate for the anchors and one for the stitch layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from ..config.sections import option
from ..errors import SnnetError
from ..net.stitchable_net import StitchableNet


@dataclass
class OptimizerSettings:
    """How the weights move."""

    opt: str = option('adamw', 'optimizer')
    lr: float = option(1e-4, 'learning rate', least=0)
    stitch_lr: float | None = option(None, 'learning rate of the stitch layers (default: the same)', least=0)
    weight_decay: float = option(0.05, 'weight decay', least=0)
    momentum: float = option(0.9, 'momentum of optimizers that have it', least=0, most=1)
    fused: bool = option(False, "torch's fused optimizer, where --opt has one")


@dataclass
class ScheduleSettings:
    """How long a run is, and how the learning rate changes over it."""

    epochs: int = option(50, 'passes over the data; 0 initializes only', least=0)
    sched: str = option('cosine', 'schedule of the learning rate')
    warmup_epochs: int = option(5, 'epochs until the full learning rate', least=0)
    warmup_lr: float = option(1e-7, 'learning rate at the start', least=0)
    min_lr: float = option(1e-6, 'learning rate at the end', least=0)


def parameter_groups(net: StitchableNet, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Groups with their own learning rate and weight decay.

    Low-rank updates count as the stitch layers'; what is frozen is in no group. Biases, norms and what a model lists
    in `no_weight_decay` (position embeddings, say) do not decay.
    """
    stitch_lr = settings.lr if settings.stitch_lr is None else settings.stitch_lr
    undecayed = {
        f'{i}.model.{name}'
        for i, anchor in enumerate(net.anchors)
        for name in getattr(anchor.model, 'no_weight_decay', set)()
    }
    groups = []
    for part, lr in ((net.anchors, settings.lr), (net.stitch_layers, stitch_lr)):
        for group in param_groups_weight_decay(part, settings.weight_decay, no_weight_decay_list=undecayed):
            if group['params']:
                groups.append({**group, 'lr': lr})
    return groups


def make_optimizer(net: StitchableNet, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """timm's optimizer of the name in the settings.

    Raises:
        SnnetError: timm has no such optimizer.
    """
    groups = parameter_groups(net, settings)
    try:
        fused = {'fused': True} if settings.fused else {}
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups, opt=settings.opt, lr=settings.lr, momentum=settings.momentum, **fused
        )
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        raise SnnetError(f"timm has no optimizer '{settings.opt}' for these settings: {error}") from None
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, settings: ScheduleSettings, steps: int) -> Scheduler:
    """timm's schedule over steps, `steps` per epoch.

    Raises:
        SnnetError: timm has no such schedule, or the warm-up is longer than the run.
    """
    check_schedule(settings)
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=settings.sched,
            num_epochs=max(1, settings.epochs),  # no epochs: initialize only
            warmup_epochs=settings.warmup_epochs if settings.epochs else 0,
            warmup_lr=settings.warmup_lr,
            min_lr=settings.min_lr,
            step_on_epochs=False,
            updates_per_epoch=steps,
        )
    except (AssertionError, ValueError) as error:
        raise SnnetError(f"timm has no schedule '{settings.sched}': {error}") from None
    if scheduler is None:
        raise SnnetError(f"timm has no schedule '{settings.sched}'")
    return scheduler


def check_schedule(settings: ScheduleSettings) -> None:
    """Refuses a warm-up that is longer than the run.

    Raises:
        SnnetError: names both lengths.
    """
    if settings.epochs and settings.warmup_epochs >= settings.epochs:
        raise SnnetError(
            f'the warm-up of {settings.warmup_epochs} epochs leaves nothing of {settings.epochs}: '
            f'lower --warmup-epochs or raise --epochs'
        )
