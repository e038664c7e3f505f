"""Every network sees the image normalized as it was trained, although a net normalizes each image once."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from .anchor import Anchor
from .normalization import IMAGENET, Renormalize

_log = logging.getLogger(__name__)


def align_normalization(anchors: Sequence[Anchor]) -> None:
    """Lets all anchors take images normalized for the first one: those that were trained otherwise get a map in front.

    An anchor whose normalization is unknown takes the images as they come. A later call for another first anchor
    replaces the maps.
    """
    given = anchors[0].normalization or IMAGENET
    for anchor in anchors:
        wanted = anchor.normalization
        if wanted is None or given == wanted or len(given.mean) != len(wanted.mean):
            anchor.renormalize = None
            continue
        anchor.renormalize = Renormalize(given, wanted)
        weight = next(anchor.parameters(), None)
        if weight is not None:
            anchor.renormalize.to(weight)
        _log.info(
            '%s was trained with %s: its images are converted from those of %s, with %s',
            anchor.name, wanted, anchors[0].name, given,
        )  # fmt: skip
