"""What settings of a training run are refused before anything is built."""

from __future__ import annotations

import torch

from ..calibration.initialize import METHODS
from ..config.parse import TrainSettings
from ..errors import SnnetError
from ..utils.modes import autocast
from .growth import check_growth

_CHOICES = {
    'init': (*METHODS, 'kaiming'),
    'clip_mode': ('norm', 'value', 'agc'),
    'unused_grads': ('none', 'zero'),
}
_LEAST = {
    'batch_size': 1, 'epochs': 0, 'init_samples': 1, 'log_interval': 1, 'grad_accum_steps': 1, 'stitches_per_step': 1,
    'stitch_rank': 0,
    'teacher_epochs': 1,
    'recalibrate': 0,
    'checkpoint_steps': 1, 'checkpoint_minutes': 0, 'checkpoint_keep': 1, 'max_skips': 1, 'check_steps': 1,
    'grow_every': 1,
}  # fmt: skip

_LONGEST = 1e9
"""Thirty years: what a watchdog can count."""


def check(settings: TrainSettings) -> None:
    """Refuses at once what would fail later.

    Raises:
        SnnetError: a setting out of its range, or two that do not go together.
    """
    for name, allowed in _CHOICES.items():
        if getattr(settings, name) not in allowed:
            raise SnnetError(f"{name} is one of {', '.join(allowed)}, not '{getattr(settings, name)}'")
    autocast(settings.amp, settings.amp_dtype, torch.device('cpu'))
    for name, least in _LEAST.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            raise SnnetError(f'{name} is at least {least}, not {value}')
    if not 0 < settings.timeout <= _LONGEST:
        raise SnnetError(f'timeout is a number of seconds above 0 and at most {_LONGEST:.0e}, not {settings.timeout}')
    if (settings.mixup > 0 or settings.cutmix > 0) and settings.batch_size % 2:
        raise SnnetError(f'mixup and cutmix pair the images of a batch: batch_size {settings.batch_size} is odd')
    check_growth(settings)
    if not settings.anchors:
        raise SnnetError('name the networks to stitch with --anchors, such as deit_tiny,deit_small,deit_base')
