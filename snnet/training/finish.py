"""The end of a run: branches are folded, BatchNorm statistics measured, and the net is saved."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from ..data.datasets import DataSettings
from ..data.train_images import TrainImages
from ..errors import SnnetError
from ..evaluation.prepare_statistics import recalibrate_in_sight
from ..net.batchnorm import batch_norms
from ..net.stitchable_net import StitchableNet
from ..utils.distributed import Ranks
from .train_step import TrainBatch, TrainStep


def give_statistics(net: StitchableNet, samples: int, step: TrainStep, images: TrainImages, epochs: int) -> None:
    """Gives every stitch BatchNorm statistics of its own, if the net has BatchNorms that several stitches share.

    Args:
        net: trained.
        samples: training images to measure them with; 0 for none.
        step: prepares the images as in training.
        images: of the run.
        epochs: of the run; the images are those of the epoch after the last, because clean ones have other statistics.
    """
    shared = len(net.stitches) > 1  # the running statistics of a single stitch are its own
    if samples and shared and batch_norms(net):
        share = -(-samples // step.ranks.world)
        recalibrate_in_sight(net, _prepared_images(step, images, epochs), share, step.ranks)


def _prepared_images(step: TrainStep, images: TrainImages, epoch: int) -> Iterator[Tensor]:
    for number, batch in enumerate(images.epoch(epoch), start=epoch * len(images)):
        yield step.prepared(TrainBatch(number, *batch))[0]


def save_net(net: StitchableNet, folder: Path, ranks: Ranks) -> None:
    """Saves the net (first rank); every rank waits for it."""
    net.eval()
    if ranks.first:
        net.save_pretrained(folder)
    ranks.barrier()


def is_saved(folder: Path) -> bool:
    """Whether a saved net is there and can be loaded."""
    try:
        StitchableNet.from_pretrained(folder)
    except SnnetError:
        return False
    return True


def next_command(net: Path, data: DataSettings, plugins: list[str], undivided: bool) -> str:
    """The command that evaluates a net.

    Args:
        net: folder of the net.
        data: the images that it was trained on.
        plugins: Python files that the net needs.
        undivided: whether all of the images were training images, so that others have to be named.
    """
    words = ['python', 'eval_stitches.py', str(net)]
    words += ['--plugin', *plugins] if plugins else []
    words += ['--dataset', data.dataset] if data.dataset else []
    if undivided:
        return f'{shlex.join(words)} --data-dir FOLDER, a folder of images that the net was not trained on'
    words += ['--data-dir', data.data_dir] if data.data_dir else []
    words += ['--class-map', data.class_map] if data.class_map else []
    return shlex.join(words)
