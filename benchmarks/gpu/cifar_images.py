"""CIFAR-10 images that stay on the device, and their augmentation there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from snnet.utils.plugins import import_plugins
from snnet.utils.seeds import key

import_plugins([str(Path(__file__).parents[2] / 'examples' / 'cifar10_resnet.py')])
from cifar10_resnet import TEST_SPRITE, read_sprite  # noqa: E402

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
SPRITES = range(20)
"""Of 1,000 training images each."""


class Labeled(NamedTuple):
    """Images (N, 3, 32, 32) with values from 0 to 1, and their classes (N,)."""

    images: Tensor
    classes: Tensor


def load(folder: str, device: torch.device, tiny: bool) -> tuple[Labeled, Labeled]:
    """Training and test images: the sprites of a folder, or generated ones where none is named."""
    if not folder:
        return generated(64 if tiny else 20_000, 0, device), generated(20 if tiny else 1000, 1, device)
    source = Path(folder)
    return _read(source, SPRITES[:1] if tiny else SPRITES, device), _read(source, [TEST_SPRITE], device)


def _read(source: Path, numbers: Sequence[int], device: torch.device) -> Labeled:
    parts = [read_sprite(source, number) for number in numbers]
    images = torch.cat([torch.from_numpy(images.copy()) for images, _ in parts]).to(device)
    classes = torch.tensor([label for _, labels in parts for label in labels], device=device)
    return Labeled(images.permute(0, 3, 1, 2).float() / 255, classes)


def generated(count: int, seed: int, device: torch.device) -> Labeled:
    """Ten coarse patterns under noise: something to learn where no images are at hand."""
    draw = torch.Generator().manual_seed(key(seed, 'generated images'))
    patterns = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    classes = torch.randint(10, (count,), generator=draw)
    smooth = F.interpolate(patterns, size=32, mode='bilinear')[classes]
    noisy = smooth + 0.2 * torch.randn(count, 3, 32, 32, generator=draw)
    return Labeled(noisy.clamp(0, 1).to(device), classes.to(device))


def normalized(images: Tensor) -> Tensor:
    """Images as the networks take them."""
    mean, std = (torch.tensor(x, device=images.device).view(-1, 1, 1) for x in (MEAN, STD))
    return (images - mean) / std


def batches(train: Labeled, size: int, purpose: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches without end, the same for the same purpose: every image once before any comes again."""
    epoch = 0
    while True:
        draw = torch.Generator(train.images.device).manual_seed(key(0, purpose, epoch))
        order = torch.randperm(len(train.images), generator=draw, device=train.images.device)
        for index in order[: len(order) // size * size].split(size):
            yield normalized(augmented(train.images[index], draw)), train.classes[index]
        epoch += 1


def augmented(x: Tensor, draw: torch.Generator) -> Tensor:
    """Images (N, 3, 32, 32) moved by up to 4 pixels, flipped, with other colors and a square of 8 pixels cut out."""
    n, _, side, _ = x.shape

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, 1, 1, 1, generator=draw, device=x.device) * (high - low) + low

    at = torch.arange(side, device=x.device)
    down, right = torch.randint(0, 9, (2, n, 1), generator=draw, device=x.device) + at  # (n, side) each
    right = torch.where(uniform(0, 1).view(n, 1) < 0.5, right.flip(1), right)
    x = F.pad(x, (4, 4, 4, 4), mode='reflect')
    x = x.gather(2, down[:, None, :, None].expand(-1, 3, -1, side + 8))
    x = x.gather(3, right[:, None, None, :].expand(-1, 3, side, -1))
    x = x * uniform(0.7, 1.3)  # brightness
    gray, level = x.mean(1, keepdim=True), x.mean((1, 2, 3), keepdim=True)
    x = gray + (x - gray) * uniform(0.6, 1.4)  # saturation
    x = (level + (x - level) * uniform(0.7, 1.3)).clamp(0, 1)  # contrast
    corner = torch.randint(0, side - 7, (2, n, 1), generator=draw, device=x.device)
    inside = (at >= corner) & (at < corner + 8)  # (2, n, side)
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(hole, level, x)
