"""The frontier: the records that no other beats on cost and accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from ..errors import InvalidBudget, SnnetError
from .record import COSTS, Record, accuracy

_LEAST = 1e-9
"""A cost of 0, such as the memory in a table made by hand, counts as this much on a logarithmic scale."""


def frontier(records: Iterable[Record], cost: str = 'flops') -> list[Record]:
    """The records that no other beats on cost and accuracy, from cheap to expensive.

    Of equal records the one with the lowest id stays. Records without accuracy or cost are left out.

    Args:
        records: records in any order.
        cost: name of the cost (see `COSTS`).

    Raises:
        InvalidBudget: an unknown cost.
    """
    if cost not in COSTS:
        raise InvalidBudget(f"a frontier is over one of {', '.join(COSTS)}, not '{cost}'")
    known = [r for r in records if accuracy(r) > -math.inf and getattr(r, cost) is not None]
    best: list[Record] = []
    for record in sorted(known, key=lambda r: (getattr(r, cost), -accuracy(r), r.stitch)):
        if not best or accuracy(record) > accuracy(best[-1]):
            best.append(record)
    return best


def mixing_accuracy(records: Iterable[Record], flops: float) -> float | None:
    """Top-1 of mixing two neighboring anchors at random such that the mean cost is `flops`.

    This is the honest baseline of a stitch, because it needs no stitching at all. None outside the range of evaluated
    anchors.
    """
    anchors = sorted((r.flops, r.top1) for r in records if r.anchor and r.flops is not None and r.top1 is not None)
    for (cheap, low), (costly, high) in pairwise(anchors):
        if cheap <= flops <= costly:
            return low if costly == cheap else low + (high - low) * (flops - cheap) / (costly - cheap)
    return None


def gains_over_mixing(records: Iterable[Record]) -> dict[int, float]:
    """What each stitch with a join gains over mixing two anchors at its cost, in points of top-1, by id.

    Those that were not evaluated are left out, and so are those outside the range of evaluated anchors.

    Args:
        records: records, those of the anchors among them.
    """
    known = list(records)
    found = {}
    for record in known:
        if record.top1 is not None and record.flops is not None and not record.anchor:
            mixed = mixing_accuracy(known, record.flops)
            if mixed is not None:
                found[record.stitch] = record.top1 - mixed
    return found


def area(records: Iterable[Record], cost: str = 'flops') -> float | None:
    """Height of the frontier: the mean over all budgets of the best top-1 within the budget, in percent.

    Budgets are uniform in the logarithm of the cost, from the cheapest evaluated anchor to the most expensive one. The
    frontier is a staircase over them, so the mean is exact.

    Args:
        records: records; those without accuracy or cost are left out.
        cost: name of the cost (see `COSTS`).

    Returns:
        The mean, or None if fewer than two anchors of different cost were evaluated.
    """
    steps = [(getattr(r, cost), accuracy(r), r.anchor) for r in records]
    known = [(max(c, _LEAST), top1, anchor) for c, top1, anchor in steps if c is not None and top1 > -math.inf]
    ends = [c for c, _, anchor in known if anchor]
    if not ends or min(ends) == max(ends):
        return None
    low, high = min(ends), max(ends)
    budgets = sorted({low, high, *(c for c, _, _ in known if low < c < high)})
    best = [max(top1 for c, top1, _ in known if c <= budget) for budget in budgets[:-1]]
    widths = [math.log(b / a) for a, b in pairwise(budgets)]
    return math.fsum(top1 * width for top1, width in zip(best, widths, strict=True)) / math.log(high / low)


def reduce_frontier(records: Sequence[Record], points: int, cost: str = 'flops') -> list[Record]:
    """The `points` records of a frontier that lose the least accuracy compared with all of it.

    The cheapest and the most expensive record stay. Between them stay those for which the mean over all budgets of the
    best top-1 within the budget is highest, with budgets uniform in the logarithm of the cost. The points therefore
    spread over the costs, and more of them lie where accuracy rises. The choice is exact; cheaper records win ties.

    Args:
        records: a frontier, from cheap to expensive (see `frontier`).
        points: how many records to keep; all stay if there are no more than that.
        cost: name of the cost that the frontier is over.

    Raises:
        SnnetError: fewer than two points, the two ends.
    """
    if points < 2:
        raise SnnetError(f'a set has at least two points, the ends of the frontier, but {points} was asked for')
    if len(records) <= points:
        return list(records)
    logs = [math.log(max(getattr(record, cost), _LEAST)) for record in records]
    last = len(records) - 1
    # by its last record, the best chain of records so far: its area and the indices of its records
    chains: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, (0,))}
    for kept in range(1, points):
        ends = range(kept, last) if kept < points - 1 else [last]
        chains = {end: _longer_chain(chains, end, records, logs) for end in ends}
    return [records[i] for i in chains[last][1]]


def _longer_chain(
    chains: dict[int, tuple[float, tuple[int, ...]]], end: int, records: Sequence[Record], logs: Sequence[float]
) -> tuple[float, tuple[int, ...]]:
    """The best chain that ends in record `end`, made of one of the chains that end before it."""
    found = [
        (area + (records[i].top1 or 0.0) * (logs[end] - logs[i]), (*chain, end))
        for i, (area, chain) in chains.items()
        if i < end
    ]
    return max(found, key=lambda chain: (chain[0], tuple(-i for i in chain[1])))


def frontier_table(records: Sequence[Record]) -> str:
    """The frontier as a table in plain text, with each record's gain over mixing two anchors at random."""
    timed = any(record.latency_ms is not None for record in records)

    def latency(text: str) -> str:
        return f'  {text:>7}' if timed else ''

    labelled = any(record.mean_average_precision is not None for record in records)

    def precision(text: str) -> str:
        return f'  {text:>6}' if labelled else ''

    head = f'{"top-1":>6}{precision("mAP")}  {"vs mixing":>9}'
    rows = [f'{"id":>4}  {"GFLOPs":>8}  {"Mparams":>8}{latency("ms")}  {head}  stitch']
    for record in frontier(records):
        flops, params, top1 = record.flops or 0, record.params or 0, record.top1 or 0.0
        baseline = mixing_accuracy(records, flops)
        gain = '' if baseline is None or record.anchor else f'{top1 - baseline:+.2f}'
        mark = ' *' if record.anchor else ''
        costs = f'{flops / 1e9:>8.4g}  {params / 1e6:>8.4g}'
        milliseconds = '' if record.latency_ms is None else f'{record.latency_ms:.4g}'
        mean = precision('' if record.mean_average_precision is None else f'{record.mean_average_precision:.2f}')
        found = f'{top1:>6.2f}{mean}  {gain:>9}'
        rows.append(f'{record.stitch:>4}  {costs}{latency(milliseconds)}  {found}  {record.legs}{mark}')
    evaluated = [r for r in records if r.top1 is not None]
    joined = sum(not r.anchor for r in evaluated)
    better = sum(gain > 0 for gain in gains_over_mixing(records).values())
    rows.append(
        f'{len(rows) - 1} of {len(evaluated)} evaluated stitches are on the frontier (* anchors); '
        f'{better} of {joined} beat mixing two anchors at random'
    )
    return '\n'.join(rows)
