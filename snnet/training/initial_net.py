"""What a training run begins with: the net of its settings, with initialized stitch layers."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..calibration.initialize import initialize, kaiming
from ..config.parse import TrainSettings
from ..data.datasets import initialization_images
from ..net.create import create_stitchable_net
from ..net.stitchable_net import StitchableNet
from ..utils.distributed import Ranks
from ..utils.log import Progress
from ..utils.seeds import generator

_log = logging.getLogger(__name__)


def build_net(settings: TrainSettings) -> StitchableNet:
    """The net that the settings name."""
    return create_stitchable_net(
        settings.anchors,
        pretrained=settings.pretrained,
        num_classes=settings.num_classes,
        img_size=settings.img_size,
        window=settings.window,
        step=settings.step,
        nearest=settings.nearest,
        direction=settings.direction,
        drop_path_rate=settings.drop_path,
    )


def initialize_layers(settings: TrainSettings, net: StitchableNet, ranks: Ranks, alive: Callable[[], object]) -> None:
    """Sets the stitch layers by least squares, with a report a layer, or by Kaiming's random choice.

    Args:
        settings: of the run.
        net: its stitch layers change.
        ranks: share the images.
        alive: is called after every few images.
    """
    if not len(net.stitch_layers):
        return
    if settings.init == 'kaiming':
        kaiming(net, generator(settings.seed, 'kaiming'))
        return
    images, share = initialization_images(settings, net, ranks)
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
