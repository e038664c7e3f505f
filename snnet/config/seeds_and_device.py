"""Sections about the process itself, which several programs share: its seeds, and how it computes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from ..utils.mixed_precision import autocast
from .sections import option


@dataclass
class SeedSettings:
    """What every random choice depends on."""

    seed: int = option(0, 'seed of every random choice')
    data_seed: int | None = option(None, 'seed of order, augmentation and mixup (default: the seed)')

    @property
    def of_data(self) -> int:
        """The seed of order, augmentation and mixup."""
        return self.seed if self.data_seed is None else self.data_seed


@dataclass
class ComputeSettings:
    """Where and how the net is computed."""

    device: str = option('', 'cpu or cuda (default: a GPU where there is one)', free=True)
    amp: bool = option(False, 'mixed precision')
    amp_dtype: str = option('bfloat16', 'type of mixed precision: bfloat16 or float16')
    compile: bool = option(False, 'compile the blocks with torch.compile: a minute or more at the start, then faster')

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context in which the net runs on a device.

        Raises:
            SnnetError: there is no such type of mixed precision.
        """
        return autocast(self.amp, self.amp_dtype, device)
