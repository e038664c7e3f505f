"""Images for training, initialization and evaluation: timm's data sets and transforms, drawn by key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_transform, resolve_data_config
from timm.data.auto_augment import AugmentOp
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from torchvision.datasets import FakeData

from ..config.parse import ImageSettings, TrainSettings
from ..errors import SnnetError, reason_of
from ..net.stitchable_net import StitchableNet
from ..utils.distributed import Ranks
from ..utils.seeds import generator, key
from .batches import AugmentedPictures, Normalizer
from .decode import Pictures, Quarantine
from .folder_checks import check_folders
from .loader import Loader
from .order import Draw, Draws

GENERATED = 'generated/'
QUARANTINE = 'quarantine.jsonl'
"""Names the unreadable training images, in the output folder."""
CPU = torch.device('cpu')


def open_dataset(settings: ImageSettings, split: str, net: StitchableNet, classes_matter: bool = True) -> Dataset[Any]:
    """The images of a split, with (PIL image, class) items once a transform is set.

    Args:
        settings: where the images are.
        split: its name. Where classes do not matter, a folder without splits or classes will do.
        net: tells image size and number of classes.
        classes_matter: whether the classes must be those of the net.

    Raises:
        SnnetError: the folder is missing, holds no images, or has another number of classes than the net.
    """
    if settings.dataset.startswith(GENERATED):
        count = settings.dataset.removeprefix(GENERATED)
        if not count.isdigit() or int(count) < 1:
            raise SnnetError(f"'{settings.dataset}' wants a number of images, as in {GENERATED}256")
        return FakeData(int(count), net.input_size, net.num_classes)
    if not settings.data_dir:
        raise SnnetError('no images: name their folder with --data-dir')
    if not settings.dataset and not Path(settings.data_dir).is_dir():
        raise SnnetError(f"there is no folder '{settings.data_dir}' (--data-dir)")
    try:
        dataset = create_dataset(
            settings.dataset, root=settings.data_dir, split=split, class_map=settings.class_map or None
        )
    except (RuntimeError, AssertionError, OSError, ValueError) as error:
        raise SnnetError(f"no images in the split '{split}' of '{settings.data_dir}': {reason_of(error)}") from None
    if isinstance(dataset, IterableDataset):
        raise SnnetError(f"'{settings.dataset}' is a stream, and images are drawn by number: use a folder or hfds/")
    if classes_matter and hasattr(getattr(dataset, 'reader', None), 'samples') and Path(settings.data_dir).is_dir():
        check_folders(dataset, Path(settings.data_dir), split, settings.class_map)
    classes = _classes_of(dataset) if classes_matter else None
    if len(dataset) == 0:
        raise SnnetError(f"no images in the split '{split}' of '{settings.data_dir}'")
    if classes is not None and classes != net.num_classes:
        raise SnnetError(
            f"the split '{split}' of '{settings.data_dir}' has {classes} classes, the anchors {net.num_classes}: "
            f'give anchors with --num-classes {classes} or a --class-map'
        )
    return dataset


def clean_transform(net: StitchableNet) -> Any:
    """Resize, center crop and normalization as the first anchor was evaluated."""
    config = _preprocessing(net)
    return create_transform(is_training=False, **config)


def clean_loader(
    settings: ImageSettings,
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
    source = AugmentedPictures(Pictures(dataset), _clean_steps(net), replace=False)
    draws = [Draw(index, 0) for index in indices]
    return _batches(source, draws, settings, net, batch_size, device)


def initialization_images(
    settings: TrainSettings, net: StitchableNet, ranks: Ranks
) -> tuple[Iterator[tuple[Tensor, Tensor]], int]:
    """This rank's share of the clean images for least squares, and how many they are; a random choice by seed.

    An image that cannot be read is replaced by another.
    """
    pictures = Pictures(open_dataset(settings, settings.train_split, net))
    share = _drawn(len(pictures), settings.init_samples, settings.seed, 'initialise')[ranks.rank :: ranks.world]
    batch_size = max(1, min(settings.batch_size, len(share)))
    source = AugmentedPictures(pictures, _clean_steps(net))
    return _batches(source, share, settings, net, batch_size, ranks.device), len(share)


def drawn_images(
    settings: ImageSettings,
    dataset: Dataset[Any],
    net: StitchableNet,
    count: int,
    seed: int,
    device: torch.device = CPU,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (images, classes) of clean images drawn by seed, of which fewer are the first of more.

    An image that cannot be read is replaced by another.
    """
    pictures = Pictures(dataset)
    draws = _drawn(len(pictures), count, seed, 'draw')
    return _batches(AugmentedPictures(pictures, _clean_steps(net)), draws, settings, net, settings.batch_size, device)


class TrainImages:
    """Augmented training batches, epoch by epoch, the same whatever the number of loader processes.

    Attributes:
        dataset: the images, not decoded.
        quarantine: the images that cannot be read. Others take their place; every so many steps all ranks let it
            `settle`, which ends the run where there are too many.

    Args:
        settings: of the run.
        net: tells image size and normalization.
        ranks: each rank reads its own share.

    Raises:
        SnnetError: there are fewer images than one batch.
    """

    def __init__(self, settings: TrainSettings, net: StitchableNet, ranks: Ranks) -> None:
        self.dataset = open_dataset(settings, settings.train_split, net)
        pictures = Pictures(self.dataset)
        self._draws = Draws(settings, len(pictures), ranks)
        self.quarantine = Quarantine(pictures, settings.max_bad_images, ranks, Path(settings.output) / QUARANTINE)
        source = AugmentedPictures(pictures, train_transform(settings, net), random_erasing(settings))
        self._loader = Loader(source, _normalizer(net, ranks.device), settings.workers, self.quarantine.add)
        if len(self) == 0:
            raise SnnetError(
                f'{len(pictures)} images are fewer than one batch of {settings.batch_size} on each of '
                f'{ranks.world} processes: lower --batch-size'
            )

    def __len__(self) -> int:
        """Batches an epoch and rank."""
        return len(self._draws)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (images, classes) of an epoch, on the device of the rank.

        Args:
            epoch: from 0.
            first: leave out so many batches; their images are not read, and the others stay as they are.
        """
        return self._loader.batches(partial(self._draws.batches, epoch), first)


def train_transform(settings: TrainSettings, net: StitchableNet) -> Any:
    """timm's training transform for the net's images, from a PIL image to a uint8 tensor; what follows is float32."""
    config = _preprocessing(net)
    transform = create_transform(
        input_size=config['input_size'],
        is_training=True,
        scale=settings.scale,
        ratio=settings.ratio,
        hflip=settings.hflip,
        color_jitter=settings.color_jitter,
        auto_augment=settings.aa or None,
        interpolation=settings.train_interpolation,
        mean=config['mean'],
        std=config['std'],
        normalize=False,
    )
    _keep_one_bit(transform)
    return transform


def random_erasing(settings: TrainSettings) -> RandomErasing | None:
    """timm's random erasing, which comes after normalization."""
    return RandomErasing(settings.reprob, mode=settings.remode, device='cpu') if settings.reprob > 0 else None


def _drawn(total: int, count: int, seed: int, purpose: str) -> list[Draw]:
    """So many of all images, or all, in random order."""
    order = torch.randperm(total, generator=generator(seed, purpose)).tolist()
    return [Draw(index, key(seed, purpose, index)) for index in order[:count]]


def _batches(
    source: AugmentedPictures,
    draws: Sequence[Draw],
    settings: ImageSettings,
    net: StitchableNet,
    batch_size: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over draws."""

    def order(first: int) -> Iterator[list[Draw]]:
        return (list(draws[at : at + batch_size]) for at in range(first * batch_size, len(draws), batch_size))

    return Loader(source, _normalizer(net, device), settings.workers, source.pictures.warn).batches(order)


def _clean_steps(net: StitchableNet) -> Any:
    return create_transform(is_training=False, normalize=False, **_preprocessing(net))


def _normalizer(net: StitchableNet, device: torch.device) -> Normalizer:
    config = _preprocessing(net)
    return Normalizer(config['mean'], config['std'], device)


def _preprocessing(net: StitchableNet) -> dict[str, Any]:
    config = resolve_data_config({'input_size': net.input_size}, model=net.anchor(0).model, verbose=False)
    return {name: config[name] for name in ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')}


def _classes_of(dataset: Any) -> int | None:
    """Number of classes where the data set tells it."""
    table = getattr(getattr(dataset, 'reader', dataset), 'class_to_idx', None)
    return len(set(table.values())) if table else None


def _keep_one_bit(transform: Any) -> None:
    """Lets posterizing keep at least one bit a channel; recent Pillow refuses the 0 bits that timm can ask for."""
    for step in getattr(transform, 'transforms', [transform]):
        policies = getattr(step, 'policy', [getattr(step, 'ops', [])])  # AutoAugment has several, RandAugment one
        for op in (op for policy in policies for op in policy):
            if isinstance(op, AugmentOp) and op.name.startswith('Posterize'):
                op.level_fn = _AtLeastOne(op.level_fn)


class _AtLeastOne:
    """A level function whose first argument is at least 1 (a class, so that loader processes can receive it)."""

    def __init__(self, level: Any) -> None:
        self.level = level

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        bits, *rest = self.level(*args)
        return (max(1, bits), *rest)
