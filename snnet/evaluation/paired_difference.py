"""By how much one stitch is better than another on the same images, with the standard error of the pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..budget.record import Record


@dataclass(frozen=True)
class Difference:
    """By how much one stitch is better than another on the same images.

    Attributes:
        points: difference in top-1, in percent.
        error: its standard error, from the images that only one of the two gets right.
        n: images.
    """

    points: float
    error: float
    n: int

    def __str__(self) -> str:
        return f'{self.points:+.2f} +- {self.error:.2f} points over {self.n:,} images'


def compare(first: np.ndarray, second: np.ndarray) -> Difference:
    """By how much the first is better, from two rows of hits (images,): sharper than their accuracies by themselves."""
    n = len(first)
    pairs = first.astype(np.int8) - second
    spread = float(pairs.var(ddof=1)) if n > 1 else math.nan
    return Difference(100 * float(pairs.mean()), 100 * math.sqrt(spread / n), n)


def best_against_anchor(records: Sequence[Record], hits: Mapping[int, np.ndarray]) -> str:
    """A sentence on the best stitch and the best anchor, compared in pairs; empty where either is not known."""
    known = [record for record in records if record.top1 is not None and record.stitch in hits]
    known.sort(key=lambda record: record.top1 or 0.0, reverse=True)
    anchor = next((record for record in known if record.anchor), None)
    stitch = next((record for record in known if not record.anchor), None)
    if anchor is None or stitch is None:
        return ''
    found = compare(hits[stitch.stitch], hits[anchor.stitch])
    return f'the best stitch, {stitch.stitch}, against the best anchor, {anchor.stitch}: {found}'
