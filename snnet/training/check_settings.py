"""Which settings of a training run are refused before anything is built."""

from __future__ import annotations

import torch

from ..config.sections import check_ranges, with_changes
from ..errors import SnnetError
from .build_net import EACH, NetSettings
from .growth import check_growth
from .log_to import check_logs
from .optimizer import check_schedule
from .teacher import LARGEST, NONE, PUBLISHED
from .train_settings import TrainSettings

_LONGEST = 1e9
"""Thirty years: what a watchdog can count."""


def check_settings(settings: TrainSettings) -> None:
    """Refuses at once what would fail later.

    Raises:
        SnnetError: a setting out of its range, or two that do not go together.
    """
    check_ranges(settings)
    settings.compute.autocast(torch.device('cpu'))
    timeout, mixing, batch_size = settings.ranks.timeout, settings.mixing, settings.data.batch_size
    if not 0 < timeout <= _LONGEST:
        raise SnnetError(f'timeout is a number of seconds above 0 and at most {_LONGEST:.0e}, not {timeout}')
    if mixing.mixes and batch_size % 2:
        raise SnnetError(f'mixup and cutmix pair the images of a batch: batch_size {batch_size} is odd')
    clip = settings.update.clip_grad
    if clip is not None and not clip > 0:
        raise SnnetError(f'clip_grad is a number above 0, or absent, not {clip}')
    rates = settings.optimizer.lr, settings.optimizer.stitch_lr
    if rates[0] == 0 and not rates[1] and settings.schedule.epochs:
        raise SnnetError('with --lr 0 nothing is trained: --epochs 0 only initializes')
    check_logs(settings.log_to)
    check_schedule(settings.schedule)
    check_growth(settings.growth, settings.compute.compile)
    _check_net(settings.net)
    _check_labels(settings)


def _check_net(net: NetSettings) -> None:
    if not (net.anchors or net.from_):
        raise SnnetError('name the networks to stitch with --anchors or --from, such as deit_tiny,deit_small,deit_base')
    if net.anchors and net.from_:
        raise SnnetError('--anchors and --from both say what to start from: give one of them')
    if net.freeze_anchors and net.tune:
        raise SnnetError('--freeze-anchors and --tune both say what is trained: leave --freeze-anchors out')
    if net.from_ and net.tuned not in ('all', EACH) and not net.learned:
        raise SnnetError(f'anchors with random weights are not worth freezing: --tune {net.tuned} needs weights')


def _check_labels(settings: TrainSettings) -> None:
    """Refuses settings that need one class per image where images have several labels."""
    if not settings.data.labels:
        return
    if settings.mixing.loss != 'bce':
        raise SnnetError('images with several labels (--labels) need --loss bce')
    if settings.mixing.mixes:
        raise SnnetError('mixup and cutmix take images of one class each: leave them out with --labels')
    if settings.distillation.teacher not in ('', NONE):
        raise SnnetError("a teacher's answer is one class per image: leave --teacher out with --labels")
    if settings.distillation.protect_anchors:
        raise SnnetError('protected anchors answer with one class per image: leave --protect-anchors out with --labels')


def with_defaults(settings: TrainSettings) -> TrainSettings:
    """The settings with what follows from others filled in, so that the folder of a run says it."""
    if settings.distillation.teacher:
        return settings
    if settings.data.labels:
        return with_changes(settings, teacher=NONE)
    return with_changes(settings, teacher=LARGEST if settings.net.from_ else PUBLISHED)
