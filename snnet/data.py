"""Images for training, initialisation and evaluation: timm's data sets and transforms, drawn by key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_transform, resolve_data_config
from timm.data.auto_augment import AugmentOp
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, Subset
from torchvision.datasets import FakeData

from .config import DataSettings, TrainSettings
from .distributed import Ranks
from .errors import SnnetError
from .net import StitchableNet
from .seeds import generator, key, seeded_libraries

GENERATED = 'generated/'


def open_dataset(settings: DataSettings, split: str, net: StitchableNet) -> Dataset[Any]:
    """The images of a split, with (PIL image, class) items once a transform is set.

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
        raise SnnetError(f"no images in the split '{split}' of '{settings.data_dir}': {error}") from None
    classes = _classes_of(dataset)
    if len(dataset) == 0:
        raise SnnetError(f"no images in the split '{split}' of '{settings.data_dir}'")
    if classes is not None and classes != net.num_classes:
        raise SnnetError(
            f"the split '{split}' of '{settings.data_dir}' has {classes} classes, the anchors {net.num_classes}: "
            f'give anchors with --num-classes {classes} or a --class-map'
        )
    return dataset


def clean_transform(net: StitchableNet) -> Any:
    """Resize, centre crop and normalisation as the first anchor was evaluated."""
    config = _preprocessing(net)
    return create_transform(is_training=False, **config)


def clean_loader(
    settings: DataSettings, dataset: Dataset[Any], net: StitchableNet, indices: Sequence[int], batch_size: int
) -> DataLoader[Any]:
    """Batches (images, classes) of the images with these indices, in this order, without augmentation."""
    dataset.transform = clean_transform(net)  # type: ignore[attr-defined]
    return DataLoader(Subset(dataset, indices), batch_size=batch_size, num_workers=settings.workers)


def initialisation_images(settings: TrainSettings, net: StitchableNet, ranks: Ranks) -> tuple[DataLoader[Any], int]:
    """This rank's share of the clean images for least squares, and how many they are; a random choice by seed."""
    dataset = open_dataset(settings, settings.train_split, net)
    total = len(dataset)  # type: ignore[arg-type]
    order = torch.randperm(total, generator=generator(settings.seed, 'initialise')).tolist()
    share = order[: settings.init_samples][ranks.rank :: ranks.world]
    batch = max(1, min(settings.batch_size, len(share)))
    return clean_loader(settings, dataset, net, share, batch), len(share)


class TrainImages:
    """Augmented training batches, epoch by epoch, the same whatever the number of loader processes.

    Args:
        settings: of the run.
        net: tells image size and normalisation.
        ranks: each rank reads its own share.

    Raises:
        SnnetError: there are fewer images than one batch.
    """

    def __init__(self, settings: TrainSettings, net: StitchableNet, ranks: Ranks) -> None:
        dataset = open_dataset(settings, settings.train_split, net)
        dataset.transform = train_transform(settings, net)  # type: ignore[attr-defined]
        self._batch_size = settings.batch_size
        self._draws = _Draws(settings, dataset, ranks)
        self._loader = DataLoader(
            _KeyedDataset(dataset),
            batch_size=settings.batch_size,
            sampler=self._draws,
            num_workers=settings.workers,
            drop_last=True,
            pin_memory=ranks.device.type == 'cuda',
        )
        if len(self._loader) == 0:
            raise SnnetError(
                f'{len(dataset)} images are fewer than one batch of {settings.batch_size} on each of '  # type: ignore[arg-type]
                f'{ranks.world} processes: lower --batch-size'
            )

    def __len__(self) -> int:
        """Batches an epoch and rank."""
        return len(self._loader)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """Batches (images, classes) of an epoch.

        Args:
            epoch: from 0.
            first: leave out so many batches; their images are not read, and the others stay as they are.
        """
        self._draws.epoch, self._draws.first = epoch, first * self._batch_size
        return iter(self._loader)


def train_transform(settings: TrainSettings, net: StitchableNet) -> Any:
    """timm's training transform for the net's images."""
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
        re_prob=settings.reprob,
        re_mode=settings.remode,
    )
    _keep_one_bit(transform)
    return transform


@dataclass(frozen=True)
class _Draw:
    """One image of an epoch: which, and the key of its augmentation."""

    index: int
    key: int


class _KeyedDataset(Dataset[Any]):
    """Augments every draw with the libraries seeded by its key."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: _Draw) -> Any:
        with seeded_libraries(draw.key):
            return self.dataset[draw.index]


class _Draws(Sampler[_Draw]):
    """This rank's draws of an epoch, in random order."""

    def __init__(self, settings: TrainSettings, dataset: Dataset[Any], ranks: Ranks) -> None:
        self.seed = settings.seed if settings.data_seed is None else settings.data_seed
        self.ranks, self.epoch, self.first = ranks, 0, 0
        place: dict[str, Any] = {'num_replicas': ranks.world, 'rank': ranks.rank}
        self.order: Any
        if settings.aug_repeats > 1:
            self.order = RepeatAugSampler(dataset, num_repeats=settings.aug_repeats, **place)
        else:
            self.order = DistributedSampler(dataset, drop_last=True, **place)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[_Draw]:
        self.order.set_epoch(key(self.seed, 'order', self.epoch) % 2**31)
        for position, index in islice(enumerate(self.order), self.first, None):
            place = position * self.ranks.world + self.ranks.rank
            yield _Draw(index, key(self.seed, 'augment', self.epoch, place))


def _preprocessing(net: StitchableNet) -> dict[str, Any]:
    config = resolve_data_config({'input_size': net.input_size}, model=net.anchor(0).model, verbose=False)
    return {name: config[name] for name in ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')}


def _classes_of(dataset: Any) -> int | None:
    """Number of classes where the data set tells it."""
    table = getattr(getattr(dataset, 'reader', dataset), 'class_to_idx', None)
    return len(set(table.values())) if table else None


def _keep_one_bit(transform: Any) -> None:
    """Lets posterising keep at least one bit a channel; recent Pillow refuses the 0 bits that timm can ask for."""
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
