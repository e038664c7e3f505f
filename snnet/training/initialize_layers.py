"""The stitch layers of a run before its first step: fitted by least squares, or drawn at random."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from ..calibration.initialize import METHODS, initialize, kaiming
from ..config.sections import option
from ..data.train_images import TrainDataSettings
from ..data.unaugmented_images import initialization_images
from ..net.stitchable_net import StitchableNet
from ..utils.distributed import Ranks
from ..utils.progress import Progress
from ..utils.seeds import generator

_log = logging.getLogger(__name__)


@dataclass
class InitializationSettings:
    """What the stitch layers start from."""

    init: str = option(
        'joint', 'stitch layers: joint or mean (least squares), or kaiming', choices=(*METHODS, 'kaiming')
    )
    init_samples: int = option(100, 'images for least squares', least=1)
    init_ridge: float = option(0.0, 'least squares: ridge, as a share of the variance of a channel')


def initialize_layers(
    settings: InitializationSettings,
    data: TrainDataSettings,
    seed: int,
    net: StitchableNet,
    ranks: Ranks,
    alive: Callable[[], object],
) -> None:
    """Sets the stitch layers by least squares, with a report for each, or at random.

    Args:
        settings: which method.
        data: the images for least squares.
        seed: of the choice of images, or of the random weights.
        net: its stitch layers change.
        ranks: share the images.
        alive: called after every few images.
    """
    if not len(net.stitch_layers):
        return
    if settings.init == 'kaiming':
        kaiming(net, generator(seed, 'kaiming'))
        return
    images, share = initialization_images(data, net, ranks, settings.init_samples, seed)
    reduce = ranks.all_reduce if ranks.world > 1 else None
    progress = Progress(share, 'images for least squares', quiet=not ranks.first)

    def note(count: int) -> None:
        alive()
        progress.update(count)

    fits = initialize(net, images, max(1, share), settings.init, reduce, note, settings.init_ridge)
    progress.close()
    for fit in fits:
        _log.debug(
            'stitch layer %d: residual %.4f, rank %d of %d, condition %.1e, %d rows',
            fit.layer, fit.residual, fit.rank, fit.channels, fit.condition, fit.rows,
        )  # fmt: skip
    residuals = [fit.residual for fit in fits]
    _log.info(
        'least squares: residuals %.3f to %.3f over %d stitch layers, worst condition %.1e',
        min(residuals), max(residuals), len(fits), max(fit.condition for fit in fits),
    )  # fmt: skip
