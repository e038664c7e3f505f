"""Settings of tiny runs for the tests of training and evaluation."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import distributed as dist

from snnet.config.sections import from_flat
from snnet.data.train_images import TrainImages
from snnet.evaluation.eval_settings import EvalSettings
from snnet.net.stitchable_net import StitchableNet
from snnet.training.run_folder import RunFolder
from snnet.training.signals import StopRequest, Watchdog
from snnet.training.train_settings import TrainSettings
from snnet.training.trainer import Trainer
from snnet.utils.distributed import Ranks, ranks

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
    return from_flat(TrainSettings, {**TINY, 'output': str(output), **changes})


def eval_settings(net: Path, **changes: Any) -> EvalSettings:
    defaults = {'dataset': 'generated/10', 'batch_size': 4, 'workers': 0, 'device': 'cpu'}
    return from_flat(EvalSettings, {**defaults, 'net': str(net), **changes})


def train_images(settings: TrainSettings, net: StitchableNet, ranks: Ranks) -> TrainImages:
    return TrainImages(settings.data, settings.augmentation, settings.seeds.of_data, Path(settings.output), net, ranks)


@contextmanager
def trainer(settings: TrainSettings) -> Iterator[Trainer]:
    """A trainer of one process, as `train` makes it."""
    with ranks(settings.compute.device) as group, StopRequest() as stop, Watchdog(settings.ranks.timeout) as watchdog:
        folder = RunFolder(settings, group.world)
        try:
            yield Trainer(settings, group, folder, stop, watchdog)
        finally:
            folder.close()


def forkserver() -> ForkServerContext:
    """Starts processes that are forked from one that has imported the package and knows none of our threads."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(
        ['timm', 'fvcore.nn', 'torchvision', 'snnet.training.trainer', 'snnet.evaluation.evaluate']
    )
    return context


def on_two_ranks(function: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
    """What a function, given a `Ranks` and `args`, returns on each of two processes joined by gloo."""
    with tempfile.TemporaryDirectory() as folder:
        return in_two_processes(_joined, f'file://{folder}/store', timeout, function, args)


def in_two_processes(function: Callable[..., Any], *args: Any) -> list[Any]:
    """What a function, given 0 or 1 and `args`, returns in each of two processes; None where that ended before.

    It must be one that another process can import; what it raises is raised here.
    """
    context = forkserver()
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    for rank, (_, end) in enumerate(pipes):
        context.Process(target=_told, args=(end, function, rank, *args), daemon=True).start()
        end.close()
    return [_received(reading) for reading, _ in pipes]


def _joined(rank: int, store: str, timeout: float, function: Callable[..., Any], args: Any) -> Any:
    dist.init_process_group('gloo', store, rank=rank, world_size=2, timeout=timedelta(seconds=timeout))
    return function(Ranks(rank, 2, torch.device('cpu')), *args)


def _told(pipe: Any, function: Callable[..., Any], *args: Any) -> None:
    torch.set_num_threads(1)
    try:
        found = function(*args)
    except Exception as error:
        traceback.print_exc()
        found = error
    pipe.send_bytes(pickle.dumps(found))  # `send` would share tensors with a process that ends


def _received(pipe: Any) -> Any:
    try:
        found = pickle.loads(pipe.recv_bytes())
    except EOFError:
        return None  # the process has ended without a word
    if isinstance(found, Exception):
        raise found
    return found


def write_images(folder: Path, classes: int, each: int, size: int = 32) -> None:
    pixels = np.random.default_rng(0)
    for label in range(classes):
        for number in range(each):
            path = folder / f'class{label}' / f'{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
