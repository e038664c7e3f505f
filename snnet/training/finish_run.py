"""The end of a run: branches are folded, BatchNorm statistics measured, and the net is saved."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from torch import Tensor

from ..data.datasets import DataSettings, class_names_of
from ..data.train_images import TrainImages
from ..data.unaugmented_images import clean_batches, drawn_images
from ..errors import SnnetError
from ..evaluation.prepare_statistics import recalibrate_with_progress
from ..net.stitch_statistics import batch_norms
from ..net.stitchable_net import StitchableNet
from ..reparam.pool_statistics import grown_stitch_layers, pool_statistics
from ..utils.distributed import Ranks
from .train_step import TrainBatch, TrainStep

_log = logging.getLogger(__name__)


def settle_grown_layers(net: StitchableNet, samples: int, images: TrainImages, seed: int, ranks: Ranks) -> None:
    """Gives grown stitch layers the statistics of all stitches that run them, before they are folded.

    Every rank computes the same.

    Args:
        net: trained.
        samples: clean training images to measure; 0 for none.
        images: of the run.
        seed: draws the images.
        ranks: of the run.
    """
    if samples and grown_stitch_layers(net):
        batches = drawn_images(images.data, images.dataset, net, samples, seed, ranks.device)
        pool_statistics(net, (batch for batch, _ in batches))


def give_statistics(net: StitchableNet, samples: int, step: TrainStep, images: TrainImages, epochs: int) -> None:
    """Gives stitches their own BatchNorm statistics where they help, if several stitches share BatchNorms.

    Measured are images as the steps saw them, because clean ones have other statistics; judged are other, clean images,
    because these are what the net will be used on. Both are of the epoch after the last.

    Args:
        net: trained.
        samples: training images to measure, and at most as many to judge; 0 for none.
        step: prepares the images as in training.
        images: of the run.
        epochs: of the run.
    """
    if not samples or len(net.stitches) == 1 or not batch_norms(net):  # a single stitch has its own statistics
        return
    share = -(-samples // step.ranks.world)
    measured = max(1, min(-(-share // images.data.batch_size), len(images) // 2))  # batches
    unseen = images.unseen(epochs, measured)
    if not all(step.ranks.gather(bool(unseen))):
        _log.warning('BatchNorm is not recalibrated: no training images are left to judge new statistics by')
        return
    held_out = clean_batches(images.data, images.dataset, net, unseen[:share], step.ranks.device)
    recalibrate_with_progress(net, _prepared_images(step, images, epochs, measured), share, step.ranks, held_out)


def _prepared_images(step: TrainStep, images: TrainImages, epoch: int, batches: int) -> Iterator[tuple[Tensor, Tensor]]:
    first = epoch * len(images)
    for number, batch in enumerate(islice(images.epoch(epoch), batches), start=first):
        yield step.prepared(TrainBatch(number, *batch))


def save_net(net: StitchableNet, folder: Path, images: TrainImages, ranks: Ranks) -> None:
    """Saves the net (first rank), with the names of the classes that it was trained on; every rank waits for it."""
    net.eval()
    names = class_names_of(images.dataset)
    net.class_names = names if names and len(names) == net.num_classes else None
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
    words += ['--labels', data.labels] if data.labels else []
    return shlex.join(words)
