"""Images that only larger stitches get right, which show what these are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..budget.frontier import frontier
from ..budget.record import Record


class DemandingImage(NamedTuple):
    """An image that all stitches of the frontier get right from one on, and none before it.

    Attributes:
        image: its place among the evaluated images.
        record: the first stitch of the frontier that is right.
    """

    image: int
    record: Record


def demanding_images(records: Sequence[Record], hits: Mapping[int, np.ndarray], count: int) -> list[DemandingImage]:
    """The images that need the most expensive stitches, the most demanding first.

    Args:
        records: what is known of the stitches.
        hits: of each evaluated stitch, whether it is right (images,).
        count: how many to find at most.
    """
    chain = [record for record in frontier(records) if record.stitch in hits]
    if len(chain) < 2:
        return []
    right = np.stack([hits[record.stitch] for record in chain])  # (stitches, images)
    wrong_before = np.argmax(right, axis=0)  # of the first that is right
    steady = right.sum(0) == len(chain) - wrong_before
    asking = np.flatnonzero(right[-1] & steady & (wrong_before > 0))
    order = asking[np.argsort(-wrong_before[asking], kind='stable')]
    return [DemandingImage(int(i), chain[wrong_before[i]]) for i in order[:count]]
