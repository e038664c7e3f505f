"""Every network sees the image normalized as it was trained, although a net normalizes each image once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_data_config
from torch import Tensor, nn

if TYPE_CHECKING:
    from .anchor import Anchor

_log = logging.getLogger(__name__)


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


_IMAGENET = Normalization(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
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


def align_normalization(anchors: Sequence[Anchor]) -> None:
    """Lets all anchors take images normalized for the first one: those that were trained otherwise get a map in front.

    An anchor whose normalization is unknown takes the images as they come. A later call for another first anchor
    replaces the maps.
    """
    given = anchors[0].normalization or _IMAGENET
    for anchor in anchors:
        wanted = anchor.normalization
        if wanted is None or given == wanted or len(given.mean) != len(wanted.mean):
            anchor.renormalize = None
            continue
        anchor.renormalize = Renormalize(given, wanted)
        weight = next(anchor.parameters(), None)
        if weight is not None:
            anchor.renormalize.to(weight)
        _log.info(
            '%s was trained with %s: its images are converted from those of %s, with %s',
            anchor.name, wanted, anchors[0].name, given,
        )  # fmt: skip
