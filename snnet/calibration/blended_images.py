"""Images, and blends of two of them, which say more about a teacher than images that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..utils.seeds import generator


class BlendedImages:
    """Images, followed by blends of two of them: x = s a + (1 - s) b with s uniform in [0, 1].

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
        own, none = torch.arange(len(images)), torch.ones(len(images))
        self._first = torch.cat([own, sources.repeat(count)])
        self._second = torch.cat([own, sources[others]])
        self._shares = torch.cat([none, torch.rand(total, generator=draw)])

    def __len__(self) -> int:
        """Number of images and blends together."""
        return len(self._shares)

    def __getitem__(self, rows: Tensor | Sequence[int]) -> Tensor:
        """Images and blends by their indices: (len(rows), C, H, W)."""
        rows = torch.as_tensor(rows)
        found = self.images[self._first[rows]]
        if bool((rows < len(self.images)).all()):
            return found
        shares = self._shares[rows].to(found)[:, None, None, None]
        return torch.lerp(self.images[self._second[rows]], found, shares)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All of them in order, so many at a time."""
        for rows in torch.split(torch.arange(len(self)), size):
            yield self[rows]
