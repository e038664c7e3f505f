"""How images were normalized for a network, and the map from one normalization to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_data_config
from torch import Tensor, nn


@dataclass(frozen=True)
class Normalization:
    """How images are normalized: (pixel - mean) / std, with pixels from 0 to 1 and one value per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_model(cls, model: nn.Module, channels: int) -> Normalization | None:
        """What timm's pretrained config of a network says; None where there is none for this number of channels."""
        if not getattr(model, 'pretrained_cfg', None):
            return None
        config: dict[str, Any] = resolve_data_config(model=model, verbose=False)
        mean, std = (tuple(float(value) for value in config[key]) for key in ('mean', 'std'))
        return cls(mean, std) if len(mean) == len(std) == channels else None

    def __str__(self) -> str:
        return f'mean {self.mean} and std {self.std}'


IMAGENET = Normalization(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
"""What timm's data pipeline uses for a network without a pretrained config."""


class Renormalize(nn.Module):
    """The exact affine map per channel from one normalization to another.

    Args:
        given: how the images that come in are normalized.
        wanted: how those that go out are.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, given: Normalization, wanted: Normalization) -> None:
        super().__init__()
        self.given = given
        mean, std, own_mean, own_std = (
            torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
            for values in (given.mean, given.std, wanted.mean, wanted.std)
        )
        # (pixel - own_mean) / own_std, where pixel = std x + mean
        self.register_buffer('scale', (std / own_std).float(), persistent=False)  # (C, 1, 1)
        self.register_buffer('shift', ((mean - own_mean) / own_std).float(), persistent=False)  # (C, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in the one normalization to the other."""
        return x * self.scale + self.shift
