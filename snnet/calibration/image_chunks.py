"""The first images of some batches, a few at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from ..errors import SnnetError

_log = logging.getLogger(__name__)


def image_chunks(
    batches: Iterable[Tensor | Sequence[Any]],
    samples: int,
    size: int,
    channels: int,
    grid: tuple[int, int] | None = None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yields the first images of some batches with their targets; draws no more batches than needed.

    Args:
        batches: images (n, C, H, W), or sequences that begin with images and targets.
        samples: how many images to yield in all; fewer come where there are fewer.
        size: most images in a chunk.
        channels: C, as the network takes images.
        grid: H and W for which the network was made; images of another size bring a warning, once.

    Yields:
        Images (m, C, H, W) with m <= size, and what the batch says of each of them (m, ...), or None.

    Raises:
        SnnetError: something else than batches of images, or images of other channels.
    """
    left = samples
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor):
        raise SnnetError(f'batches are a list or loader of image batches (n, C, H, W), not a {type(batches).__name__}')
    for batch in batches:
        images, targets = (batch, None) if isinstance(batch, Tensor) else _pair(batch)
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            raise SnnetError(
                f'a batch is a tensor of normalized images (n, C, H, W), or begins with one, not {_kind(images)}'
            )
        if images.shape[1] != channels:
            raise SnnetError(f'the network takes images of {channels} channels, not {images.shape[1]}')
        if grid is not None and tuple(images.shape[2:]) != grid:
            _log.warning('images of %dx%d, but the network was made for %dx%d', *images.shape[2:], *grid)
            grid = None
        images = images[:left]
        for at in range(0, len(images), size):
            yield images[at : at + size], None if targets is None else targets[:left][at : at + size]
        left -= len(images)
        if left <= 0:
            return


def _pair(batch: object) -> tuple[Any, Tensor | None]:
    """The images of a batch that is a sequence, and its targets."""
    return (batch[0], _targets(batch)) if isinstance(batch, Sequence) and len(batch) else (batch, None)


def _kind(value: object) -> str:
    """What was given in place of images, for a message."""
    if isinstance(value, Tensor):
        return f'{tuple(value.shape)} of {str(value.dtype).removeprefix("torch.")}'
    return f'a {type(value).__name__}'


def _targets(batch: Sequence[Any]) -> Tensor | None:
    """The second item of a batch, where it holds one tensor row per image."""
    found = batch[1] if len(batch) > 1 else None
    return found if isinstance(found, Tensor) and found.ndim > 0 and len(found) == len(batch[0]) else None
