"""Settings of tiny runs for the tests of training and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from snnet.config import EvalSettings, TrainSettings
from snnet.distributed import ranks
from snnet.engine import Trainer
from snnet.folder import RunFolder
from snnet.stop import StopRequest, Watchdog

TINY: dict[str, Any] = {
    'anchors': 'test_vit,test_vit2',
    'pretrained': False,
    'num_classes': 4,
    'img_size': 32,
    'dataset': 'generated/12',
    'batch_size': 4,
    'workers': 0,
    'epochs': 2,
    'warmup_epochs': 0,
    'teacher': 'none',
    'init_samples': 8,
    'log_interval': 1,
    'device': 'cpu',
}


def train_settings(output: Path, **changes: Any) -> TrainSettings:
    return TrainSettings(**{**TINY, 'output': str(output), **changes})


def eval_settings(net: Path, **changes: Any) -> EvalSettings:
    defaults = {'dataset': 'generated/10', 'batch_size': 4, 'workers': 0, 'device': 'cpu'}
    return EvalSettings(**{**defaults, 'net': str(net), **changes})


@contextmanager
def trainer(settings: TrainSettings) -> Iterator[Trainer]:
    """A trainer of one process, as `train` makes it."""
    with ranks('cpu') as group, StopRequest() as stop, Watchdog(settings.timeout) as watchdog:
        yield Trainer(settings, group, RunFolder(settings, group.world), stop, watchdog)


def write_images(folder: Path, classes: int, each: int, size: int = 32) -> None:
    pixels = np.random.default_rng(0)
    for label in range(classes):
        for number in range(each):
            path = folder / f'class{label}' / f'{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
