"""Which settings of a training run are refused before anything is built."""

from __future__ import annotations

import torch

from ..config.sections import check_ranges
from ..errors import SnnetError
from .growth import check_growth
from .optimizer import check_schedule
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
    check_schedule(settings.schedule)
    check_growth(settings.growth, settings.compute.compile)
    if not settings.net.anchors:
        raise SnnetError('name the networks to stitch with --anchors, such as deit_tiny,deit_small,deit_base')
