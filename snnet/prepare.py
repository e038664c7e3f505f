"""BatchNorm statistics before an evaluation: measured with training images and kept in the folder of the net."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from .config import DataSettings, EvalSettings
from .data import clean_loader, open_dataset
from .distributed import Ranks
from .errors import SnnetError
from .hub import write_records, write_statistics
from .log import Progress
from .net import StitchableNet
from .recalibrate import recalibrate
from .seeds import generator
from .statistics import batch_norms

_log = logging.getLogger(__name__)
SAMPLES = 1000
"""Images by default: a BatchNorm at the coarsest grid then sees 49,000 vectors, and one behind the pooling 1,000."""


def prepare_statistics(settings: EvalSettings, net: StitchableNet, ranks: Ranks) -> None:
    """Recalibrates the BatchNorms of a saved net where the settings say so, or by default where nobody has.

    Raises:
        SnnetError: it was asked for and cannot be done.
    """
    wanted, held = settings.recalibrate, net.statistics
    if wanted is not None and wanted < 0:
        raise SnnetError(f'recalibrate is a number of images, or 0, not {wanted}')
    if wanted == 0 or (wanted is None and (held is not None or not batch_norms(net))):
        return
    try:
        images = _training_images(settings, net)
    except SnnetError as error:
        if wanted is not None:
            raise
        _log.warning(
            'BatchNorm runs with the statistics of the anchors (%s): --recalibrate %d measures those of every stitch',
            error, SAMPLES,
        )  # fmt: skip
        return
    total = len(images)  # type: ignore[arg-type]  # a Dataset with a length
    samples = min(SAMPLES if wanted is None else wanted, total)
    if held is not None and held.samples == samples and len(held.stitches) == len(net.stitches):
        return
    recalibrate_on(settings, net, ranks, images, samples)
    if ranks.first:
        _store(Path(settings.net), net)
    ranks.barrier()


def _training_images(settings: EvalSettings, net: StitchableNet) -> Dataset[Any]:
    """The split to recalibrate with.

    Raises:
        SnnetError: it is not there, it is the split that is evaluated, or it is no folder and nobody asked for it.
    """
    if settings.recalibrate is None and settings.dataset:
        raise SnnetError('they are measured without being asked for only on folders of images')
    images, evaluated = (open_dataset(settings, split, net) for split in (settings.train_split, settings.val_split))
    both = [set(s.filenames(absolute=True)) if hasattr(s, 'filenames') else set() for s in (images, evaluated)]
    if both[0] & both[1]:
        raise SnnetError(
            f"the splits '{settings.train_split}' and '{settings.val_split}' of '{settings.data_dir}' share images"
        )
    return images


def recalibrate_on(
    settings: DataSettings, net: StitchableNet, ranks: Ranks, images: Dataset[Any], samples: int = SAMPLES
) -> None:
    """Recalibrates a net with some training images, chosen at random and shared by the ranks, and tells of progress.

    Args:
        settings: how images are read.
        net: a net with BatchNorm.
        ranks: the processes share the images.
        images: training images.
        samples: how many of them, or all where there are fewer.
    """
    total = len(images)  # type: ignore[arg-type]  # a Dataset with a length
    samples = min(samples, total)
    _log.info('recalibrating BatchNorm in %d stitches with %d training images', len(net.stitches), samples)
    order = torch.randperm(total, generator=generator(0, 'recalibrate')).tolist()
    share = order[:samples][ranks.rank :: ranks.world]
    loader = clean_loader(settings, images, net, share, max(1, min(settings.batch_size, len(share))))
    progress: list[Progress] = []

    def tell(count: int, work: int) -> None:
        if not progress:
            progress.append(Progress(work, 'images through parts', quiet=not ranks.first))
        progress[0].update(count)

    reduce = ranks.all_reduce if ranks.world > 1 else None
    recalibrate(net, loader, max(1, len(share)), progress=tell, all_reduce=reduce)
    for bar in progress:
        bar.close()


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
