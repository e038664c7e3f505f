"""The images that stitches adapt with, and those among them that judge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import SnnetError
from ..net.stitchable_net import StitchableNet
from .image_chunks import image_chunks
from .mixed_images import mixed_images

_JUDGES = 4
"""Every so many images one judges."""


def images_to_adapt_with(
    net: StitchableNet, batches: Iterable[Tensor | Sequence[Any]], samples: int, mixtures: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Takes images from batches, and adds mixtures of those that do not judge.

    Args:
        net: says which images it takes, and on which device and in which type.
        batches: images (n, C, H, W), or sequences that begin with them.
        samples: most images to take.
        mixtures: how many to add.
        seed: of the mixtures.

    Returns:
        All images (n, C, H, W), and which of them judge (n,), on the CPU.

    Raises:
        SnnetError: too few images, or some of other channels than the net takes or with values that are not finite.
    """
    images = _collected(net, batches, samples)
    judges = torch.arange(len(images)) % _JUDGES == _JUDGES - 1
    if mixtures:
        images = torch.cat([images, mixed_images(images[~judges], mixtures, seed)])
        judges = torch.cat([judges, torch.zeros(mixtures, dtype=torch.bool)])
    return images, judges


def _collected(net: StitchableNet, batches: Iterable[Tensor | Sequence[Any]], samples: int) -> Tensor:
    """At most so many images (n, C, H, W) of batches, on the net's device and in its type.

    Raises:
        SnnetError: too few, or images of other channels than the net takes or with values that are not finite.
    """
    weight = next(net.parameters())
    found = image_chunks(batches, samples, samples, net.input_size[0])
    chunks = [images.to(weight.device, weight.dtype) for images, _ in found]
    count = sum(map(len, chunks))
    if count < 2 * _JUDGES:
        raise SnnetError(f'stitches are adapted with at least {2 * _JUDGES} images, some of which judge, not {count}')
    if not all(bool(chunk.isfinite().all()) for chunk in chunks):
        raise SnnetError('images hold values that are not finite, so nothing can be adapted to them')
    return torch.cat(chunks)
