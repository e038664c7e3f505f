"""Optimizer and schedule of a net: timm's, with a learning rate for the anchors and one for the stitch layers."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from ..config.parse import TrainSettings
from ..errors import SnnetError
from ..net.stitchable_net import StitchableNet


def parameter_groups(net: StitchableNet, settings: TrainSettings) -> list[dict[str, Any]]:
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


def make_optimizer(net: StitchableNet, settings: TrainSettings) -> torch.optim.Optimizer:
    """timm's optimizer of the name in the settings.

    Raises:
        SnnetError: timm knows no such optimizer.
    """
    groups = parameter_groups(net, settings)
    try:
        fused = {'fused': True} if settings.fused else {}
        return create_optimizer_v2(groups, opt=settings.opt, lr=settings.lr, momentum=settings.momentum, **fused)
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        raise SnnetError(f"timm has no optimizer '{settings.opt}' for these settings: {error}") from None


def make_schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int) -> Scheduler:
    """timm's schedule over steps, `steps` an epoch.

    Raises:
        SnnetError: timm knows no such schedule, or the warm-up is longer than the run.
    """
    if settings.epochs and settings.warmup_epochs >= settings.epochs:
        raise SnnetError(
            f'the warm-up of {settings.warmup_epochs} epochs leaves nothing of {settings.epochs}: '
            f'lower --warmup-epochs or raise --epochs'
        )
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
