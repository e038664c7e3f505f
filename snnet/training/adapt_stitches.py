"""The last part of a run, on demand: every stitch adapts to what its front gives it (`snnet.adapt`)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..calibration.adapt import adapt, adaptable, check_positive
from ..config.sections import option
from ..data.train_images import TrainImages
from ..data.unaugmented_images import drawn_images
from ..net.stitchable_net import StitchableNet
from ..utils.distributed import Ranks

_log = logging.getLogger(__name__)


@dataclass
class AdaptationSettings:
    """How stitches adapt at the end of a run, without changing any anchor."""

    adapt_minutes: float = option(
        0.0, 'about how long stitches adapt to their fronts at the end, without changing any anchor; 0 for not', least=0
    )
    adapt_steps: int | None = option(
        None, 'updates of each stitch, in place of what the minutes allow; 0 for not', least=0
    )
    adapt_samples: int = option(2000, 'training images to adapt with; every fourth one judges', least=8)
    adapt_blends: int = option(3, 'blends of two images to adapt with, beside each image', least=0)
    adapt_blocks: int | None = option(
        None,
        'modules behind each join whose whole weights belong to the stitch, too (default: tries none, and as many as '
        'make the net twice as large; images that judge choose for each stitch)',
        least=0,
    )
    adapt_lr: float = option(2e-3, 'highest learning rate of adapting')

    @property
    def wanted(self) -> bool:
        """Whether stitches adapt at all."""
        return self.adapt_minutes > 0 if self.adapt_steps is None else self.adapt_steps > 0


def check_adaptation(settings: AdaptationSettings, net: StitchableNet) -> None:
    """Refuses, before anything is trained, what could not be adapted at the end.

    Raises:
        SnnetError: no stitch has a join, the parameters of stitches would be more than those of the net, or a setting
            is out of range.
    """
    if not settings.wanted:
        return
    check_positive(adapt_minutes=settings.adapt_minutes or None, adapt_lr=settings.adapt_lr)
    adaptable(
        net,
        blocks=settings.adapt_blocks,
        remedy='train without adapting, then adapt some (snnet adapt FOLDER --stitches IDS)',
    )


def adapt_stitches(
    settings: AdaptationSettings,
    net: StitchableNet,
    images: TrainImages,
    seed: int,
    ranks: Ranks,
    folder: Path,
    alive: Callable[[], object],
) -> None:
    """Adapts all stitches with a join. Every rank computes the same; the first keeps what is done, and logs the report.

    Args:
        settings: how.
        net: trained, folded and merged.
        images: of the run.
        seed: draws the images.
        ranks: of the run.
        folder: keeps finished stitches, so that an interrupted run goes on from there; of no use once the net is saved.
        alive: called after every step.
    """
    if not settings.wanted:
        return
    done = adapt(
        net,
        drawn_images(images.data, images.dataset, net, settings.adapt_samples, seed, ranks.device),
        settings.adapt_minutes or 1.0,  # not looked at where steps are given
        steps=settings.adapt_steps,
        samples=settings.adapt_samples,
        blends=settings.adapt_blends,
        blocks=settings.adapt_blocks,
        lr=settings.adapt_lr,
        seed=seed,
        folder=folder if ranks.first else None,
        quiet=not ranks.first,
        progress=lambda steps: alive(),
    )
    if ranks.first:
        _log.info('%s', done)
