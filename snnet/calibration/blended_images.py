"""Images, and blends of two of them, which say more about a teacher than images that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..utils.seeds import generator


class BlendedImages:
    """Images, followed by blends of two of them: x = s a + (1 - s) b with s uniform in [0, 1].

    Each of the two is mirrored with probability 1/2.

    A network answers images of its training set with certainty, and blends of them with doubts. So a student learns
    more of how it decides (Beyer et al. 2021, "Knowledge distillation: A good teacher is patient and consistent").
    A blend is made when it is asked for: what is held are the images alone.

    Args:
        images: (n, C, H, W).
        sources: indices of the images that are blended (m,).
        count: blends per source.
        seed: of the pairs and shares.
    """

    def __init__(self, images: Tensor, sources: Tensor, count: int, seed: int) -> None:
        self.images = images
        draw = generator(seed, 'blends')
        total = count * len(sources)
        others = torch.randint(len(sources), (total,), generator=draw)
        own, unchanged = torch.arange(len(images)).expand(2, -1), torch.zeros(2, len(images), dtype=torch.bool)
        self._pairs = torch.cat([own, torch.stack([sources.repeat(count), sources[others]])], 1)  # (2, all)
        self._mirrored = torch.cat([unchanged, torch.rand(2, total, generator=draw) < 0.5], 1)  # (2, all)
        self._shares = torch.cat([torch.ones(len(images)), torch.rand(total, generator=draw)])

    def __len__(self) -> int:
        """Number of images and blends together."""
        return len(self._shares)

    def __getitem__(self, rows: Tensor | Sequence[int]) -> Tensor:
        """Images and blends by their indices: (len(rows), C, H, W)."""
        rows = torch.as_tensor(rows)
        if bool((rows < len(self.images)).all()):
            return self.images[rows]
        first, second = (self._side(number, rows) for number in (0, 1))
        return torch.lerp(second, first, self._shares[rows].to(first)[:, None, None, None])

    def _side(self, number: int, rows: Tensor) -> Tensor:
        """One of the two images of some blends."""
        found = self.images[self._pairs[number, rows]]
        mirrored = self._mirrored[number, rows].to(found.device)[:, None, None, None]
        return torch.where(mirrored, found.flip(-1), found)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All of them in order, so many at a time."""
        for rows in torch.split(torch.arange(len(self)), size):
            yield self[rows]
