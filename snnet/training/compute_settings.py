"""The settings of training that say where and how the net is computed."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.sections import option
from ..config.seeds_and_device import ComputeSettings


@dataclass
class TrainComputeSettings(ComputeSettings):
    """Where and how the net is computed."""

    channels_last: bool = option(False, 'keep images and convolutions channel by channel in memory')
    grad_checkpointing: bool = option(False, 'recompute blocks in the backward pass: less memory, more time')
