"""Folders of images that would silently be read as something other than what was meant."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import SnnetError

_TRAIN = ('train', 'training')
_VALIDATION = ('validation', 'val', 'valid', 'eval', 'evaluation')


def check_folders(dataset: Any, data_dir: Path, split: str, class_map: str) -> None:
    """Refuses a folder data set whose classes are not what its folders say.

    Args:
        dataset: timm's, of image files.
        data_dir: the folder that was named.
        split: the split that was asked for.
        class_map: file that fixes the classes; folders then need not agree.

    Raises:
        SnnetError: the split is missing though there are others, a class folder holds no images, or training and
            validation have different class folders.
    """
    root = Path(dataset.reader.root)
    there = _folders(data_dir)
    if root == data_dir and there & {*_TRAIN, *_VALIDATION}:
        raise SnnetError(f"'{data_dir}' has no split '{split}', but {_some(there)}")
    if class_map:
        return
    _refuse_empty_classes(dataset, root)
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


def _refuse_empty_classes(dataset: Any, root: Path) -> None:
    """A class folder without images would shift the numbers of the classes behind it."""
    doubtful = _folders(root) - set(dataset.reader.class_to_idx)
    if doubtful:
        filled = {Path(path).relative_to(root).parts[0] for path, _ in dataset.reader.samples}
        if empty := doubtful - filled:
            raise SnnetError(f"class folders of '{root}' hold no images: {_some(empty)}; fill or remove them")


def _folders(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith('.')}


def _some(names: Iterable[str]) -> str:
    """Up to five names, and how many more there are."""
    names = sorted(names)
    if not names:
        return 'none'
    return ', '.join(map(repr, names[:5])) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
