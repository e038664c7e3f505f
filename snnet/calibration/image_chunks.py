"""The first images of some batches, a few at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor


def image_chunks(
    batches: Iterable[Tensor | Sequence[Any]], samples: int, size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yields the first images of some batches with their targets; no batch is drawn that is not needed.

    Args:
        batches: images (n, C, H, W), or sequences that begin with images and targets.
        samples: how many images to yield in all; fewer come where there are fewer.
        size: most images in a chunk.

    Yields:
        Images (m, C, H, W) with m <= size, and what the batch says of each of them (m, ...), or None.
    """
    left = samples
    for batch in batches:
        images, targets = (batch, None) if isinstance(batch, Tensor) else (batch[0], _targets(batch))
        images = images[:left]
        for at in range(0, len(images), size):
            yield images[at : at + size], None if targets is None else targets[:left][at : at + size]
        left -= len(images)
        if left <= 0:
            return


def _targets(batch: Sequence[Any]) -> Tensor | None:
    """The second item of a batch, where it holds one tensor row per image."""
    found = batch[1] if len(batch) > 1 else None
    return found if isinstance(found, Tensor) and found.ndim > 0 and len(found) == len(batch[0]) else None
