"""What is known of a stitch: its costs and its accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass

COSTS = ('flops', 'params', 'latency_ms', 'memory')
"""Names of the costs that a budget can limit, in the order in which ties are broken."""
RESULTS = ('top1', 'top5', 'loss', 'n', 'mean_per_class', 'mean_average_precision')
"""What evaluation finds out about a stitch, which holds for its weights alone."""


@dataclass(frozen=True)
class Record:
    """A stitch with its costs and accuracy; None means unknown.

    Attributes:
        stitch: id.
        legs: the stitch as text, such as 'deit_tiny[:7] > deit_small[7:]'.
        flops: multiply-adds per image.
        params: parameters that take part.
        latency_ms: median milliseconds per call, from a table made on this machine.
        memory: bytes that the stitch needs by itself, from the same table.
        top1, top5: accuracy in percent over `n` images.
        loss: mean cross-entropy over them; the binary one where images have several labels.
        n: number of evaluated images.
        anchor: whether the stitch is an anchor itself.
        recalibrated: share of its own BatchNorm statistics that the stitch normalizes with, 0 if they did not help;
            None if it was not recalibrated.
        mean_per_class: mean over the classes of the accuracy within each, in percent; equal to `top1` where every class
            has as many images. None where images have several labels.
        mean_average_precision: where images have several labels, mean over the classes that occur of the average
            precision of each, in percent.
    """

    stitch: int
    legs: str
    flops: int | None = None
    params: int | None = None
    latency_ms: float | None = None
    memory: int | None = None
    top1: float | None = None
    top5: float | None = None
    loss: float | None = None
    n: int | None = None
    anchor: bool = False
    recalibrated: float | None = None
    mean_per_class: float | None = None
    mean_average_precision: float | None = None


def accuracy(record: Record) -> float:
    """Top-1, or minus infinity if it is unknown."""
    return -math.inf if record.top1 is None or math.isnan(record.top1) else record.top1
