"""Mixtures of images: what the largest anchor says of them shows more than what it says of images that it knows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..utils.seeds import generator

_CHUNK = 1000


def mixed_images(images: Tensor, count: int, seed: int) -> Tensor:
    """Draws mixtures `share * a + (1 - share) * b` of two images, half of them mirrored.

    Shares are uniform, so a mixture lies anywhere between two images. Distillation on such images needs no labels
    (Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", section 3).

    Args:
        images: (n, C, H, W).
        count: number of mixtures.
        seed: of the draws.

    Returns:
        (count, C, H, W).
    """
    found = images.new_empty(count, *images.shape[1:])
    for number, chunk in enumerate(torch.split(found, _CHUNK)):
        draw, size = generator(seed, 'mixtures', number), len(chunk)
        one, other = torch.randint(len(images), (2, size), generator=draw).to(images.device)
        share = torch.rand(size, 1, 1, 1, generator=draw).to(images)
        mirrored = (torch.rand(size, generator=draw) < 0.5).to(images.device)
        torch.lerp(images[other], images[one], share, out=chunk)
        chunk[mirrored] = chunk[mirrored].flip(3)
    return found
