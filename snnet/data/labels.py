"""Images with several labels each, as a table lists them: a file name, then a 0 or 1 for every class."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch.utils.data import Dataset

from ..errors import SnnetError, reason_of
from ..utils.typed_json import quoted

_SPLITS = {'train': ('train', 'training'), 'validation': ('validation', 'val', 'valid', 'eval', 'evaluation')}
"""Names of folders by what timm's users call the split."""


class LabelReader:
    """Opens the images of a table, in the form of timm's readers.

    Attributes:
        root: folder of the images.
        samples: path and labels (0 or 1 for every class) of each image.
        class_to_idx: numbers of the classes by name.
    """

    def __init__(self, root: Path, samples: list[tuple[str, list[int]]], classes: list[str]) -> None:
        self.root, self.samples = str(root), samples
        self.class_to_idx = {name: i for i, name in enumerate(classes)}

    def __getitem__(self, index: int) -> tuple[BinaryIO, list[int]]:
        path, labels = self.samples[index]
        return open(path, 'rb'), labels

    def __len__(self) -> int:
        return len(self.samples)


class LabelledImages(Dataset[Any]):
    """The images of a split that a table of labels lists.

    Args:
        table: CSV file. Its first row is `file` and the names of the classes, each further one the path of an image
            below the folder, then 0 or 1 for every class.
        folder: of the images.
        split: only images in this folder below it, if the table has images in folders of splits.

    Raises:
        SnnetError: the table cannot be read, a row is wrong, or an image is missing.
    """

    def __init__(self, table: Path, folder: Path, split: str) -> None:
        classes, rows = _read(table)
        names = next((names for names in _SPLITS.values() if split in names), (split,))
        there = {Path(path).parts[0] for path, _ in rows}
        divided = there & {split, *(name for names in _SPLITS.values() for name in names)}
        chosen = [row for row in rows if not divided or Path(row[0]).parts[0] in names]
        if not rows:
            raise SnnetError(f'{table} lists no images: there is only the first row')
        if not chosen:
            raise SnnetError(f"{table} lists no images of the split '{split}', but of {', '.join(sorted(divided))}")
        samples = [(str(folder / path), labels) for path, labels in chosen]
        missing = [path for path, _ in samples if not Path(path).is_file()]
        if missing:
            raise SnnetError(f'{len(missing)} images of {table} are missing, such as {missing[0]}')
        root = folder / Path(chosen[0][0]).parts[0] if divided else folder
        self.reader = LabelReader(root, samples, classes)

    def __len__(self) -> int:
        return len(self.reader)

    def filename(self, index: int, absolute: bool = False) -> str:
        """Path of an image."""
        path = self.reader.samples[index][0]
        return path if absolute else str(Path(path).relative_to(self.reader.root))

    def filenames(self, absolute: bool = False) -> list[str]:
        """Paths of all images."""
        return [self.filename(index, absolute) for index in range(len(self))]


def has_several_labels(dataset: Any) -> bool:
    """Whether the images of a data set have a label for every class instead of one class."""
    return isinstance(dataset, LabelledImages)


def label_table(dataset: Any, indices: Iterable[int]) -> np.ndarray | None:
    """Whether each of some images has each label (images, classes); None where images have one class each."""
    if not isinstance(dataset, LabelledImages):
        return None
    return np.array([dataset.reader.samples[i][1] for i in indices], bool)


def _read(table: Path) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """Names of the classes, and path and labels of each image."""
    try:
        with open(table, newline='', encoding='utf-8-sig') as file:
            head, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise SnnetError(f'the labels {table} cannot be read: {reason_of(error)}') from None
    if len(head) < 2 or set(head[1:]) <= {'0', '1'} or not all(name.strip() for name in head):
        raise SnnetError(f"{table}: the first row is 'file' and the names of the classes, not {quoted(','.join(head))}")
    name, count = Counter(head).most_common(1)[0]
    if count > 1:
        raise SnnetError(f"{table}: the first row names '{name}' more than once")
    found = dict[str, list[int]]()
    for row in rows:
        path = os.path.normpath(row[0])
        outside = os.path.isabs(path) or path.split(os.sep)[0] == '..'
        if len(row) != len(head) or not set(row[1:]) <= {'0', '1'} or outside:
            raise SnnetError(
                f'{table}: a row is the path of an image below --data-dir and {len(head) - 1} times 0 or 1, '
                f'not {quoted(",".join(row))}'
            )
        if path in found:
            raise SnnetError(f'{table} lists {row[0]} twice: one row holds all labels of an image')
        found[path] = [int(value) for value in row[1:]]
    return head[1:], list(found.items())
