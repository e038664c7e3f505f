"""BatchNorm statistics before an evaluation: measured on training images and kept in the folder of the net."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ..calibration.recalibrate import recalibrate
from ..data.datasets import open_dataset
from ..data.unaugmented_images import clean_loader
from ..errors import SnnetError
from ..net.save_and_load import write_records, write_statistics
from ..net.stitchable_net import StitchableNet
from ..utils.distributed import Ranks
from ..utils.progress import Progress
from ..utils.seeds import generator
from .eval_settings import EvalSettings

_log = logging.getLogger(__name__)


def prepare_statistics(settings: EvalSettings, net: StitchableNet, ranks: Ranks) -> None:
    """Recalibrates the BatchNorms of a saved net on clean training images, where the settings ask for it.

    Off by default, because clean images are only an approximation of what the weights were trained on (CIFAR-10
    ResNet-20 alone: 91.0 % with its own statistics, 91.3 with those of images augmented as in its training, 88.8 with
    those of clean ones). Training leaves better ones. Half of the images judge what the other half measures, so that a
    stitch changes only where it gains.

    Raises:
        SnnetError: no BatchNorm, fewer than two images, or the images that are evaluated.
    """
    if settings.recalibrate == 0:
        return
    if settings.recalibrate < 2:
        raise SnnetError(
            f'recalibrate is 0 or at least 2 images, half of which judge the new statistics, not {settings.recalibrate}'
        )
    images = _training_images(settings, net)
    total = len(images)  # type: ignore[arg-type]  # a Dataset with a length
    samples, held = min(settings.recalibrate, total), net.statistics
    if held is not None and held.samples + held.held_out == samples and len(held.shares) == len(net.stitches):
        _log.info('BatchNorm keeps the statistics that the net has, chosen on %d images', samples)
        return  # so that an evaluation that was stopped goes on with the same ones
    _log.info('recalibrating BatchNorm in %d stitches with %d training images', len(net.stitches), samples)
    order = torch.randperm(total, generator=generator(0, 'recalibrate')).tolist()
    share = order[:samples][ranks.rank :: ranks.world]
    loader = clean_loader(settings.data, images, net, share, max(1, min(settings.data.batch_size, len(share))))
    recalibrate_with_progress(net, loader, max(1, len(share)), ranks)
    if ranks.first:
        _store(Path(settings.net), net)
    ranks.barrier()


def recalibrate_with_progress(
    net: StitchableNet, batches: Iterable[Any], samples: int, ranks: Ranks, held_out: Iterable[Any] | None = None
) -> None:
    """Recalibrates a net with images of all ranks and shows progress.

    Args:
        net: a net with BatchNorm.
        batches: images of this rank, or pairs of images and classes.
        samples: how many of them.
        ranks: the processes of the run.
        held_out: images of this rank to judge by; every other one of the batches where None.
    """
    bar: Progress | None = None

    def advance(count: int, work: int) -> None:
        nonlocal bar
        bar = bar or Progress(work, 'images through parts', quiet=not ranks.first)
        bar.update(count)

    reduce = ranks.all_reduce if ranks.world > 1 else None
    recalibrate(net, batches, samples, progress=advance, all_reduce=reduce, held_out=held_out)
    if bar is not None:
        bar.close()


def _training_images(settings: EvalSettings, net: StitchableNet) -> Dataset[Any]:
    splits = settings.train_split, settings.val_split
    images, evaluated = (open_dataset(settings.data, split, net) for split in splits)
    both = [set(s.filenames(absolute=True)) if hasattr(s, 'filenames') else set() for s in (images, evaluated)]
    if both[0] & both[1]:  # timm takes a folder without splits for each of them
        raise SnnetError(
            f"the splits '{settings.train_split}' and '{settings.val_split}' of '{settings.data.data_dir}' share images"
        )
    return images


def _store(folder: Path, net: StitchableNet) -> None:
    """Writes the statistics, and the records as the statistics leave them, into the folder."""
    try:
        write_records(folder, net.records)
        assert net.statistics is not None  # just measured
        write_statistics(folder, net.statistics)
    except OSError as error:
        _log.warning(
            'the BatchNorm statistics are valid for this evaluation only, because %s cannot keep them: %s',
            folder,
            error,
        )
