"""The images of a data set: where they are, and whether a net can be trained or tested on them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data import create_dataset
from torch.utils.data import Dataset, IterableDataset
from torchvision.datasets import FakeData

from ..anchors.class_names import names_of_table
from ..config.sections import option
from ..errors import SnnetError, reason_of
from ..net.stitchable_net import StitchableNet
from .folder_checks import check_classes, check_split
from .labels import LabelledImages

GENERATED = 'generated/'
FOLDER_NAMES = ('', 'folder', 'tar', 'ImageFolder')
"""Names under which timm's users ask for the folder itself."""
SOURCES = (GENERATED, 'hfds/', 'hfids/', 'tfds/', 'torch/', 'wds/')
"""What other names begin with; timm reads the folder, without a word, for any name that begins otherwise."""


@dataclass
class DataSettings:
    """Where images come from and how they are read."""

    data_dir: str = option('', 'folder with one folder of images per class in each split', free=True)
    dataset: str = option('', "timm's name of a data set (default: the folder); 'generated/N' makes N random images")
    class_map: str = option('', 'file that maps class names to indices')
    labels: str = option('', 'CSV file with several labels per image: a path, then 0 or 1 for every class')
    batch_size: int = option(128, 'images per step and process', least=1)
    workers: int = option(4, 'processes that load images', free=True, least=0)


def open_dataset(data: DataSettings, split: str, net: StitchableNet, classes_matter: bool = True) -> Dataset[Any]:
    """The images of a split, with (PIL image, class) items once a transform is set.

    Args:
        data: where the images are.
        split: its name. Where classes do not matter, a folder without splits or classes will do.
        net: gives image size and number of classes.
        classes_matter: whether the classes must be those of the net.

    Raises:
        SnnetError: the folder is missing, holds no images, or has another number of classes than the net; or the net
            has none.
    """
    if classes_matter and net.num_classes == 0:
        raise SnnetError(f'{net.title} has no classes, it is a net of embeddings: --num-classes gives it classifiers')
    if data.dataset.startswith(GENERATED):
        count = data.dataset.removeprefix(GENERATED)
        if not re.fullmatch('[0-9]{1,9}', count) or int(count) < 1:
            raise SnnetError(f"'{data.dataset}' needs a number of images, as in {GENERATED}256")
        generated: Dataset[Any] = FakeData(int(count), net.input_size, net.num_classes)
        return generated
    dataset = _found(data, split, classes_matter)
    classes = classes_of(dataset) if classes_matter else None
    if classes is not None and classes != net.num_classes:
        raise SnnetError(
            f"the split '{split}' of '{data.data_dir}' has {classes} classes, the net {net.num_classes}: "
            f'train.py --from fits new heads for these images, --num-classes {classes} starts from random ones, and a '
            f'--class-map names other classes'
        )
    found: Dataset[Any] = dataset
    return found


def count_classes(data: DataSettings, split: str) -> int | None:
    """The number of classes of a split, before there is a net; None where the data set does not say.

    Raises:
        SnnetError: the folder is missing or holds no images.
    """
    if data.dataset.startswith(GENERATED):
        return None
    classes = classes_of(_found(data, split, True))
    if classes == 1:
        raise SnnetError(
            f"'{data.data_dir}' has images of one class only: put each class into a folder by itself, or name a table "
            f'with --labels where images have several labels'
        )
    return classes


def _found(data: DataSettings, split: str, classes_matter: bool) -> Any:
    """timm's data set of a split that holds images."""
    if data.dataset not in FOLDER_NAMES and not data.dataset.startswith(SOURCES):
        raise SnnetError(
            f"there is no data set '{data.dataset}': leave --dataset out to read a folder, or give a name that starts "
            f'with {", ".join(SOURCES)}'
        )
    if not data.data_dir:
        raise SnnetError('no images: name their folder with --data-dir')
    if data.dataset in FOLDER_NAMES and not Path(data.data_dir).is_dir():
        raise SnnetError(f"there is no folder '{data.data_dir}' (--data-dir)")
    if data.labels:
        return LabelledImages(Path(data.labels), Path(data.data_dir), split)
    if data.class_map.endswith('.pkl'):
        raise SnnetError(
            f"the class map '{data.class_map}' is a pickle, which can run code when it is read: write one class name "
            f'per line into a .txt file instead'
        )
    try:
        dataset: Any = create_dataset(data.dataset, root=data.data_dir, split=split, class_map=data.class_map or None)
    except Exception as error:  # whatever the reader of a data set raises, or a package that it needs and lacks
        raise SnnetError(f"no images in the split '{split}' of {_place(data)}: {reason_of(error)}") from None
    if isinstance(dataset, IterableDataset):
        raise SnnetError(f"'{data.dataset}' is a stream, but images are drawn by number: use a folder or hfds/")
    if hasattr(getattr(dataset, 'reader', None), 'samples') and Path(data.data_dir).is_dir():
        check_split(dataset, Path(data.data_dir), split)
        if classes_matter:
            check_classes(dataset, Path(data.data_dir), data.class_map)
    if len(dataset) == 0:
        raise SnnetError(f"no images in the split '{split}' of '{data.data_dir}'")
    return dataset


def classes_of(dataset: Any) -> int | None:
    """The number of classes, if the data set says."""
    table = getattr(getattr(dataset, 'reader', dataset), 'class_to_idx', None)
    return len(set(table.values())) if table else None


def targets_of(dataset: Any) -> list[int] | None:
    """The class of every image, if the data set lists them."""
    samples = getattr(getattr(dataset, 'reader', dataset), 'samples', None)
    if samples is not None and all(isinstance(sample[1], int) for sample in samples):
        return [sample[1] for sample in samples]
    targets = getattr(dataset, 'targets', None)
    return None if targets is None else [int(target) for target in targets]


def class_names(dataset: Any, classes: int) -> list[str]:
    """The names of so many classes, by number; the number itself where the data set does not name a class."""
    table = getattr(getattr(dataset, 'reader', dataset), 'class_to_idx', None) or {}
    names = {index: str(name) for name, index in table.items()}
    return [names.get(i, str(i)) for i in range(classes)]


def class_names_of(dataset: Any) -> tuple[str, ...] | None:
    """Names of the classes in the order of their numbers, if the data set says them."""
    return names_of_table(getattr(getattr(dataset, 'reader', dataset), 'class_to_idx', None))


def _place(data: DataSettings) -> str:
    return f"'{data.data_dir}'" if data.dataset in FOLDER_NAMES else f"'{data.dataset}' in '{data.data_dir}'"
