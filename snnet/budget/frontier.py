"""Records of stitches and the frontier among them. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

COSTS = ('flops', 'params', 'latency_ms', 'memory')
"""Names of the costs that a budget can limit, in the order in which ties are broken."""


@dataclass(frozen=True)
class Record:
    """A stitch with its costs and accuracy; None while unknown.

    Attributes:
        stitch: id.
        legs: the stitch in print.
        flops: multiply-adds an image.
        params: parameters that take part.
        latency_ms: median milliseconds a call, from a table made on this machine.
        memory: bytes that the stitch needs by itself, from the same table.
        top1, top5: accuracy in percent over `n` images.
        loss: mean cross-entropy over them.
        n: number of evaluated images.
        anchor: whether the stitch is an anchor itself.
        recalibrated: share of its own BatchNorm statistics that the stitch normalizes with, 0 where they did not help;
            None where it was not recalibrated.
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


def frontier(records: Iterable[Record], cost: str = 'flops') -> list[Record]:
    """The records that no other beats on cost and accuracy, from cheap to dear.

    Of equal ones the lowest id stays. Records without accuracy or cost do not take part.
    """
    known = [r for r in records if accuracy(r) > -math.inf and getattr(r, cost) is not None]
    best: list[Record] = []
    for record in sorted(known, key=lambda r: (getattr(r, cost), -accuracy(r), r.stitch)):
        if not best or accuracy(record) > accuracy(best[-1]):
            best.append(record)
    return best


def mixing_accuracy(records: Iterable[Record], flops: float) -> float | None:
    """Top-1 of randomly mixing the two anchors next to `flops` so that the mean cost is `flops`.

    The honest baseline of a stitch: it needs no stitching at all. None outside the range of evaluated anchors.
    """
    anchors = sorted((r.flops, r.top1) for r in records if r.anchor and r.flops is not None and r.top1 is not None)
    for (cheap, low), (dear, high) in pairwise(anchors):
        if cheap <= flops <= dear:
            return low if dear == cheap else low + (high - low) * (flops - cheap) / (dear - cheap)
    return None


def area(records: Iterable[Record], cost: str = 'flops') -> float | None:
    """Height of the frontier: the mean over all budgets of the best top-1 within the budget, in percent.

    Budgets are uniform in the logarithm of the cost, from the cheapest evaluated anchor to the dearest; the frontier
    is a staircase over them, so the mean is exact. None where fewer than two anchors of different cost were evaluated.

    Args:
        records: records; those without accuracy or cost do not take part.
        cost: name of the cost (see `COSTS`).
    """
    steps = [(getattr(r, cost), accuracy(r), r.anchor) for r in records]
    known = [(c, top1, anchor) for c, top1, anchor in steps if c is not None and top1 > -math.inf]
    ends = [c for c, _, anchor in known if anchor]
    if not ends or min(ends) == max(ends):
        return None
    low, high = min(ends), max(ends)
    budgets = sorted({low, high, *(c for c, _, _ in known if low < c < high)})
    best = [max(top1 for c, top1, _ in known if c <= budget) for budget in budgets[:-1]]
    widths = [math.log(b / a) for a, b in pairwise(budgets)]
    return math.fsum(top1 * width for top1, width in zip(best, widths, strict=True)) / math.log(high / low)


def accuracy(record: Record) -> float:
    """Top-1, or minus infinity where it is unknown."""
    return -math.inf if record.top1 is None or math.isnan(record.top1) else record.top1


def table(records: Sequence[Record]) -> str:
    """The frontier as a table in plain text, with each record's gain over randomly mixing two anchors."""
    timed = any(record.latency_ms is not None for record in records)

    def latency(text: str) -> str:
        return f'  {text:>7}' if timed else ''

    rows = [f'{"id":>4}  {"GFLOPs":>8}  {"Mparams":>8}{latency("ms")}  {"top-1":>6}  {"vs mixing":>9}  stitch']
    for record in frontier(records):
        flops, params, top1 = record.flops or 0, record.params or 0, record.top1 or 0.0
        baseline = mixing_accuracy(records, flops)
        gain = '' if baseline is None or record.anchor else f'{top1 - baseline:+.2f}'
        mark = ' *' if record.anchor else ''
        costs = f'{flops / 1e9:>8.4g}  {params / 1e6:>8.4g}'
        milliseconds = '' if record.latency_ms is None else f'{record.latency_ms:.4g}'
        rows.append(f'{record.stitch:>4}  {costs}{latency(milliseconds)}  {top1:>6.2f}  {gain:>9}  {record.legs}{mark}')
    evaluated = [r for r in records if r.top1 is not None]
    compared = [(r.top1, mixing_accuracy(records, r.flops or 0)) for r in evaluated if not r.anchor]
    better = sum(top1 > baseline for top1, baseline in compared if top1 is not None and baseline is not None)
    rows.append(
        f'{len(rows) - 1} of {len(evaluated)} evaluated stitches are on the frontier (* anchors); '
        f'{better} of {len(compared)} beat mixing two anchors at random'
    )
    return '\n'.join(rows)
