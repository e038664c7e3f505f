"""`snnet split FOLDER OUTPUT`: divides a folder with a folder of images per class into training and validation."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..config.sections import option
from ..errors import SnnetError
from .new_folder import new_folder

_log = logging.getLogger(__name__)
_SPLITS = {'train', 'training', 'val', 'valid', 'validation', 'eval', 'evaluation', 'test', 'testing'}
"""Names of splits; two of them are no coincidence."""


@dataclass
class SplitSettings:
    """Settings of `snnet split`."""

    folder: str = option('', 'folder with one folder of images per class')
    output: str = option('', 'new folder, which gets train/CLASS and validation/CLASS')
    share: float = option(0.2, 'share of the images of each class for validation')
    seed: int = option(0, 'of the random choice')


def run(settings: SplitSettings) -> None:
    """Divides the images of each class at random; files are linked where the disk allows it, and copied elsewhere.

    Raises:
        SnnetError: the folder has no classes or is divided already, a class has one image, or the output is there.
    """
    import torch  # here, so that --help does not load it

    from ..utils.seeds import generator

    folder, output = Path(settings.folder), new_folder(settings.output)
    if output.resolve().is_relative_to(folder.resolve()):
        raise SnnetError(f"'{output}' lies within '{folder}', where it would be another class: name a folder elsewhere")
    if not 0 < settings.share < 1:
        raise SnnetError(f'share is above 0 and below 1, not {settings.share}')
    chosen: dict[str, tuple[list[Path], list[Path]]] = {}
    for name, files in _classes(folder).items():
        order = torch.randperm(len(files), generator=generator(settings.seed, f'split {name}')).tolist()
        held = set(order[: min(len(files) - 1, max(1, round(settings.share * len(files))))])
        parts = [file for i, file in enumerate(files) if i not in held], [files[i] for i in sorted(held)]
        chosen[name] = parts
    for name, parts in chosen.items():
        for split, files in zip(('train', 'validation'), parts, strict=True):
            for file in files:
                target = output / split / name / file.relative_to(folder / name)
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(file, target)
    train, validation = (sum(len(parts[i]) for parts in chosen.values()) for i in range(2))
    print(f'{len(chosen)} classes: {train} images for training and {validation} for validation in {output}')


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The images of each class, sorted."""
    from timm.data.readers.img_extensions import get_img_extensions  # loads torch

    from ..data.folder_checks import OTHER_ENDINGS

    if not folder.is_dir():
        raise SnnetError(f"there is no folder '{folder}'")
    kinds = get_img_extensions(as_set=True)
    folders = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith('.')]
    files = {entry.name: sorted(file for file in entry.rglob('*') if file.is_file()) for entry in folders}
    found = {name: [file for file in there if file.suffix.lower() in kinds] for name, there in files.items()}
    unread = [file for there in files.values() for file in there if file.suffix.lower() in OTHER_ENDINGS - kinds]
    if unread:
        _log.warning('%d images are left out for their endings, such as %s: convert them', len(unread), unread[0])
    if len(names := _SPLITS & {name.lower() for name in found}) > 1 or {'train', 'val', 'validation'} & names:
        raise SnnetError(f"'{folder}' is divided already: it holds {', '.join(found)}")
    few = [name for name, files in found.items() if len(files) < 2]
    if few or len(found) < 2:
        reason = f'{", ".join(few[:5])} has fewer than two images' if few else 'it needs two folders of images or more'
        raise SnnetError(f"'{folder}' cannot be divided: {reason}")
    return found


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)  # a link to a relative symbolic link would lead nowhere
    except OSError:  # another disk, or a file system without links
        shutil.copy2(file, target)
