"""Images without augmentation: for initialization, statistics and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..net.stitchable_net import StitchableNet
from ..utils.distributed import Ranks
from ..utils.seeds import generator, key
from .batches import AugmentedPictures
from .datasets import DataSettings, open_dataset
from .decode import Pictures
from .loader import Loader
from .order import Draw
from .train_images import TrainDataSettings
from .transforms import clean_steps, make_normalizer

CPU = torch.device('cpu')


def clean_loader(
    data: DataSettings,
    dataset: Dataset[Any],
    net: StitchableNet,
    indices: Sequence[int],
    batch_size: int,
    device: torch.device = CPU,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (images, classes) on a device of the images with these indices, in this order, without augmentation.

    Raises:
        SnnetError: an image cannot be read.
    """
    source = AugmentedPictures(Pictures(dataset), clean_steps(net), replace=False)
    draws = [Draw(index, 0) for index in indices]
    return _batches(source, draws, data, net, batch_size, device)


def initialization_images(
    data: TrainDataSettings, net: StitchableNet, ranks: Ranks, samples: int, seed: int
) -> tuple[Iterator[tuple[Tensor, Tensor]], int]:
    """This rank's share of the clean images for least squares, chosen at random by seed, and their number.

    An image that cannot be read is replaced by another.
    """
    pictures = Pictures(open_dataset(data, data.train_split, net))
    share = _drawn(len(pictures), samples, seed, 'initialise')[ranks.rank :: ranks.world]
    batch_size = max(1, min(data.batch_size, len(share)))
    source = AugmentedPictures(pictures, clean_steps(net))
    return _batches(source, share, data, net, batch_size, ranks.device), len(share)


def drawn_images(
    data: DataSettings,
    dataset: Dataset[Any],
    net: StitchableNet,
    count: int,
    seed: int,
    device: torch.device = CPU,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (images, classes) of clean images drawn by seed; a smaller number takes the first of a larger one.

    An image that cannot be read is replaced by another.
    """
    return clean_batches(data, dataset, net, _drawn(len(Pictures(dataset)), count, seed, 'draw'), device)


def clean_batches(
    data: DataSettings, dataset: Dataset[Any], net: StitchableNet, draws: Sequence[Draw], device: torch.device = CPU
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (images, classes) on a device of images drawn before, without augmentation.

    An image that cannot be read is replaced by another.
    """
    source = AugmentedPictures(Pictures(dataset), clean_steps(net))
    return _batches(source, draws, data, net, data.batch_size, device)


def _drawn(total: int, count: int, seed: int, purpose: str) -> list[Draw]:
    """The given number of images, or all, in random order."""
    order = torch.randperm(total, generator=generator(seed, purpose)).tolist()
    return [Draw(index, key(seed, purpose, index)) for index in order[:count]]


def _batches(
    source: AugmentedPictures,
    draws: Sequence[Draw],
    data: DataSettings,
    net: StitchableNet,
    batch_size: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over draws."""

    def order(first: int) -> Iterator[list[Draw]]:
        return (list(draws[at : at + batch_size]) for at in range(first * batch_size, len(draws), batch_size))

    return Loader(source, make_normalizer(net, device), data.workers, source.pictures.warn).batches(order)
