"""The command that trains a reassembled network, printed at the end of a search: it runs as printed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.datasets import DataSettings, classes_of

_BATCH = 32
"""Images per step of the recipe that --from implies."""


def training_command(
    folder: Path, data: DataSettings, split: str, images: Any, plugins: Sequence[str], all_weights: bool
) -> str:
    """The command that tunes a saved network to the classes of the images that it was made with.

    Args:
        folder: of the network.
        data: where the images are.
        split: their split.
        images: the data set.
        plugins: Python files that the network needs.
        all_weights: train all weights, not only joins and head.
    """
    words = ['python', 'train.py', '--from', str(folder)]
    words += ['--tune', 'all'] if all_weights else []
    words += ['--plugin', *plugins] if plugins else []
    classes = classes_of(images)
    if not data.dataset and (classes or 0) < 2:
        return f'{shlex.join(words)} --data-dir FOLDER, a folder with one folder of images per class in each split'
    given = {'dataset': data.dataset, 'data-dir': data.data_dir, 'class-map': data.class_map}
    for flag, value in given.items():
        words += [f'--{flag}', str(value)] if value else []
    words += ['--train-split', split] if split != 'train' else []
    words += ['--batch-size', str(len(images))] if len(images) < _BATCH else []
    return shlex.join(words)
