"""Whether the images of an evaluation are different from those of the training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ..data.datasets import DataSettings
from ..data.folder_checks import is_undivided
from ..errors import SnnetError
from ..utils.parse_yaml import parse_yaml
from ..utils.read_limited import read_limited

_log = logging.getLogger(__name__)


def refuse_training_images(data: DataSettings, split: str, dataset: Dataset[Any], net: Path) -> None:
    """Refuses a folder without splits if the net was trained on it; warns if that is unknown.

    Args:
        data: where the images are.
        split: name of the split to evaluate.
        dataset: its images.
        net: folder of the net. The training run that made it left its settings beside it.

    Raises:
        SnnetError: names the folder.
    """
    if not is_undivided(dataset, data.data_dir):
        return
    run = _training_data(net.parent / 'config.yaml')
    if 'data_dir' not in run:
        _log.warning(
            "'%s' has no split '%s': all of its images are used; if the net was trained on them, the accuracies are "
            'those of training', data.data_dir, split,
        )  # fmt: skip
    elif Path(run['data_dir']).resolve() == Path(data.data_dir).resolve() and split != run.get('train_split'):
        raise SnnetError(
            f"'{data.data_dir}' has no split '{split}', and the net was trained on its images: name a folder of other "
            f'images, or give --val-split {run.get("train_split")} to measure the accuracy of training'
        )


def _training_data(config: Path) -> dict[str, str]:
    """Where a run's training images are, from its settings, flat or nested; empty where there are none."""
    try:
        values = parse_yaml(read_limited(config))
        values = {**values, **values.get('data', {})}
        return {name: str(values[name]) for name in ('data_dir', 'train_split')}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}
