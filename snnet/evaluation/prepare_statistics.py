"""BatchNorm statistics before an evaluation: measured with training images and kept in the folder of the net."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ..calibration.recalibrate import recalibrate
from ..data.clean_images import clean_loader
from ..data.datasets import open_dataset
from ..errors import SnnetError
from ..net.pretrained import write_records, write_statistics
from ..net.stitchable_net import StitchableNet
from ..utils.distributed import Ranks
from ..utils.progress import Progress
from ..utils.seeds import generator
from .eval_settings import EvalSettings

_log = logging.getLogger(__name__)


def prepare_statistics(settings: EvalSettings, net: StitchableNet, ranks: Ranks) -> None:
    """Recalibrates the BatchNorms of a saved net with clean training images, where the settings say so.

    It is not done unasked, for clean images are a makeshift where nobody knows how the weights were trained: they
    lift bad stitches and lower good ones (CIFAR-10 ResNet-20 alone: 91.0 % with its own statistics, 91.3 with those
    of images augmented as in its training, 88.8 with those of clean ones). Training knows and leaves better ones.

    Raises:
        SnnetError: no BatchNorm, no such images, or the images that are evaluated.
    """
    if settings.recalibrate == 0:
        return
    images = _training_images(settings, net)
    total = len(images)  # type: ignore[arg-type]  # a Dataset with a length
    samples, held = min(settings.recalibrate, total), net.statistics
    if held is not None and held.samples == samples and len(held.stitches) == len(net.stitches):
        _log.info('BatchNorm keeps the statistics that the net has, of %d images', samples)
        return  # so that an evaluation that was stopped goes on with the same ones
    _log.info('recalibrating BatchNorm in %d stitches with %d training images', len(net.stitches), samples)
    order = torch.randperm(total, generator=generator(0, 'recalibrate')).tolist()
    share = order[:samples][ranks.rank :: ranks.world]
    loader = clean_loader(settings.data, images, net, share, max(1, min(settings.data.batch_size, len(share))))
    recalibrate_in_sight(net, loader, max(1, len(share)), ranks)
    if ranks.first:
        _store(Path(settings.net), net)
    ranks.barrier()


def recalibrate_in_sight(net: StitchableNet, batches: Iterable[Any], samples: int, ranks: Ranks) -> None:
    """Recalibrates a net with images of all ranks and tells of progress.

    Args:
        net: a net with BatchNorm.
        batches: images of this rank, or pairs whose first item they are.
        samples: how many of them.
        ranks: the processes of the run.
    """
    progress: list[Progress] = []

    def tell(count: int, work: int) -> None:
        if not progress:
            progress.append(Progress(work, 'images through parts', quiet=not ranks.first))
        progress[0].update(count)

    recalibrate(net, batches, samples, progress=tell, all_reduce=ranks.all_reduce if ranks.world > 1 else None)
    for bar in progress:
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
    """Puts the statistics into the folder, whose accuracies were those of other ones."""
    net.records = [replace(record, top1=None, top5=None, loss=None, n=None) for record in net.records]
    try:
        write_records(folder, net.records)
        assert net.statistics is not None  # just measured
        write_statistics(folder, net.statistics)
    except OSError as error:
        _log.warning(
            'the statistics of BatchNorm hold for this evaluation only, for %s cannot keep them: %s', folder, error
        )
