"""Folders of images that would silently be read as something other than what was meant."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from timm.data import get_img_extensions

from ..errors import SnnetError

_log = logging.getLogger(__name__)
_TRAIN = ('train', 'training')
_VALIDATION = ('validation', 'val', 'valid', 'eval', 'evaluation')
OTHER_ENDINGS = {'.webp', '.bmp', '.gif', '.tif', '.tiff', '.avif', '.heic', '.jfif', '.jp2', '.ppm', '.pgm'}
"""Of images that timm reads only where it is told so."""
_LOOKED_AT = 20_000
"""Files whose endings are looked at: enough to find a mistake, and quick in the largest folders."""


def check_split(dataset: Any, data_dir: Path, split: str) -> None:
    """Refuses a missing split, for which timm would read the images of all splits, and warns of images left out.

    Args:
        dataset: timm's, of image files.
        data_dir: the folder that was named.
        split: the split that was asked for.

    Raises:
        SnnetError: the split is missing though there are others, or a symbolic link leads to a folder that is read
            already.
    """
    root = Path(dataset.reader.root)
    there = _folders(data_dir)
    _refuse_folders_read_twice(dataset, root)
    if root == data_dir and {name.lower() for name in there} & {*_TRAIN, *_VALIDATION}:
        hint = '' if there & {*_TRAIN, *_VALIDATION} else ' (splits are written in small letters)'
        raise SnnetError(f"'{data_dir}' has no split '{split}', but {_some(there)}{hint}")
    _warn_of_other_endings(root)


def check_classes(dataset: Any, data_dir: Path, class_map: str) -> None:
    """Refuses a folder data set whose classes are not what its folders say.

    Args:
        dataset: timm's, of image files.
        data_dir: the folder that was named.
        class_map: file that fixes the classes; folders then need not agree.

    Raises:
        SnnetError: a class folder holds no images, or training and validation have different class folders.
    """
    root = Path(dataset.reader.root)
    if class_map:
        _warn_of_classes_left_out(dataset, root, class_map)
        return
    _refuse_empty_classes(dataset, root)
    _warn_of_merged_classes(dataset, root)
    _warn_of_classes_in_classes(dataset, root)
    there = _folders(data_dir)
    others = _VALIDATION if root.name in _TRAIN else _TRAIN if root.name in _VALIDATION else ()
    for other in (name for name in others if name in there and root != data_dir):
        here, elsewhere = _folders(root), _folders(data_dir / other)
        if elsewhere and here != elsewhere:
            raise SnnetError(
                f"'{root}' and '{data_dir / other}' have different classes: only the first has "
                f'{_some(here - elsewhere)}, only the second {_some(elsewhere - here)}; a --class-map can settle it'
            )


def is_undivided(dataset: Any, data_dir: str) -> bool:
    """Whether a data set is the whole named folder, which timm reads for every split if there are no splits.

    Args:
        dataset: of timm or torchvision.
        data_dir: the folder that was named.
    """
    root = getattr(getattr(dataset, 'reader', dataset), 'root', None)
    return isinstance(root, (str, Path)) and bool(data_dir) and Path(root).resolve() == Path(data_dir).resolve()


def _image_folders(dataset: Any) -> list[str]:
    """The folders that hold images, short paths first."""
    found = {path.rpartition(os.sep)[0] for path, _ in dataset.reader.samples if isinstance(path, str)}
    return sorted(found, key=lambda folder: (len(folder), folder))


def _refuse_folders_read_twice(dataset: Any, root: Path) -> None:
    """A symbolic link to a folder above or beside it would count images several times, and under several classes."""
    places: dict[str, str] = {}
    for folder in _image_folders(dataset):
        first = places.setdefault(os.path.realpath(folder), folder)
        if first != folder:
            raise SnnetError(
                f"a symbolic link in '{root}' leads to a folder that is read already: '{folder}' is '{first}'"
            )


def _warn_of_classes_in_classes(dataset: Any, root: Path) -> None:
    """Classes are the innermost folders, so images in a folder of a class are a class by themselves."""
    filled = {Path(folder).relative_to(root) for folder in _image_folders(dataset)}
    inside = [folder.as_posix() for folder in filled if filled & set(folder.parents) - {Path()}]
    if inside:
        _warn_once(f"'{root}' has folders with images inside of class folders, each a class by itself: {_some(inside)}")


def _refuse_empty_classes(dataset: Any, root: Path) -> None:
    """A class folder without images would shift the numbers of the classes behind it."""
    doubtful = _folders(root) - set(dataset.reader.class_to_idx)
    if doubtful:
        filled = {Path(path).relative_to(root).parts[0] for path, _ in dataset.reader.samples}
        if empty := doubtful - filled:
            raise SnnetError(f"class folders of '{root}' hold no images: {_some(empty)}; fill or remove them")


def _warn_of_merged_classes(dataset: Any, root: Path) -> None:
    """Classes are the innermost folders, so equal ones in several places are one class."""
    places: dict[str, list[str]] = {}
    for folder in _image_folders(dataset):
        places.setdefault(Path(folder).name, []).append(Path(folder).relative_to(root).as_posix())
    merged = [folders for folders in places.values() if len(folders) > 1]
    if merged:
        _warn_once(
            f"'{root}' has folders of one name in several places, which are one class each, such as {_some(merged[0])}"
        )


def _warn_of_classes_left_out(dataset: Any, root: Path, class_map: str) -> None:
    """timm reads no images of classes that a class map lacks."""
    if left_out := _folders(root) - {Path(path).relative_to(root).parts[0] for path, _ in dataset.reader.samples}:
        _warn_once(
            f"the class map '{class_map}' lacks folders of '{root}', whose images are not used: {_some(left_out)}"
        )


def _warn_of_other_endings(root: Path) -> None:
    files = (name for _, _, names in os.walk(root, followlinks=True) for name in names)
    endings = Counter(os.path.splitext(name)[1].lower() for name in islice(files, _LOOKED_AT))
    unread = sorted((OTHER_ENDINGS & endings.keys()) - set(get_img_extensions()))
    if unread:
        count = sum(endings[ending] for ending in unread)
        _warn_once(
            f"{count} images of '{root}' are not used, because they end in {', '.join(unread)}: convert them, or call "
            f'timm.data.add_img_extensions({unread[0]!r}) in a --plugin'
        )


@lru_cache
def _warn_once(message: str) -> None:
    """A data set is opened several times in a run."""
    _log.warning('%s', message)


def _folders(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith('.')}


def _some(names: Iterable[str]) -> str:
    """Up to five names, and how many more there are."""
    names = sorted(names)
    if not names:
        return 'none'
    return ', '.join(map(repr, names[:5])) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
