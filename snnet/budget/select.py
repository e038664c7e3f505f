"""The choice of a stitch under a budget."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import BudgetInfeasible, InvalidBudget
from .limits import Limit, checked_limit, excess, infeasible
from .record import COSTS, Record, accuracy

_SOURCES = {
    'flops': 'snnet.measure_costs(net)',
    'params': 'snnet.measure_costs(net)',
    'latency_ms': 'snnet profile FOLDER',
    'memory': 'snnet profile FOLDER',
}
"""What measures each cost."""


@dataclass(frozen=True)
class Selection:
    """A chosen record.

    Attributes:
        record: what was chosen.
        by_accuracy: whether its accuracy decided, rather than its cost alone.
        source: the table that latency and memory came from; empty if neither was limited.
    """

    record: Record
    by_accuracy: bool
    source: str = ''

    def __str__(self) -> str:
        record, why = self.record, 'the most accurate' if self.by_accuracy else 'the most expensive'
        table = f', by the table for {self.source}' if self.source else ''
        return f'stitch {record.stitch} ({record.legs}): {why} within the budget{table}'

    def warn(self) -> None:
        """Warns if accuracy could not decide."""
        if not self.by_accuracy:
            warnings.warn(
                'no stitch within the budget has been evaluated, so the most expensive one that fits was chosen, '
                'not the most accurate (eval_stitches.py measures accuracy)',
                stacklevel=3,
            )


def select(records: Sequence[Record], **limits: float | None) -> Selection:
    """The most accurate record within all limits, or the most expensive one that fits if none of those was evaluated.

    Ties go to the cheaper record (first in the limited costs, in the order of `COSTS`, then in the others), then to the
    lower id.

    Args:
        records: candidates; one that lacks a limited cost does not fit.
        limits: upper limits by the name of a cost (see `COSTS`); None means no limit.

    Raises:
        InvalidBudget: no limit, one that is not a positive finite number, an unknown cost, or one not measured yet.
        BudgetInfeasible: no record fits.
    """
    return Chooser(records).choose(**limits)


class Chooser:
    """Answers budgets on records that do not change.

    The records are sorted once, when a combination of limits is first asked for. After that a single limit takes a
    binary search on its frontier. With several limits, the best record within one of them is the answer wherever it
    fits the others, which is the usual case because costs rise together. Otherwise all records are searched.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = tuple(records)
        self._frontiers: dict[tuple[tuple[str, ...], str], tuple[list[float], list[Record]]] = {}

    def choose(self, **limits: float | None) -> Selection:
        """The best record within limits (see `select`)."""
        asked = {name: _checked(name, limit) for name, limit in limits.items() if limit is not None}
        if not asked:
            raise InvalidBudget(f'no budget given: limit at least one of {", ".join(COSTS)}')
        names = tuple(sorted(asked, key=COSTS.index))
        for name in names:
            if self.records and all(getattr(r, name) is None for r in self.records):
                raise InvalidBudget(f'{name} of the stitches is not known yet: {_SOURCES[name]} measures it')
        for name in names:
            best = self._within(names, name, asked[name])
            if best is not None and _fits(best, asked):
                return Selection(best, True)
        fitting = [r for r in self.records if _fits(r, asked)]
        if not fitting:
            raise _infeasible(self.records, asked)
        evaluated = [r for r in fitting if accuracy(r) > -math.inf]
        if evaluated:
            return Selection(min(evaluated, key=lambda r: _order(r, names)), True)
        return Selection(min(fitting, key=lambda r: (-getattr(r, names[0]), *_order(r, names))), False)

    def _within(self, names: tuple[str, ...], cost: str, limit: Limit) -> Record | None:
        """The most accurate record within one limit."""
        if (names, cost) not in self._frontiers:
            self._frontiers[names, cost] = _frontier(self.records, names, cost)
        costs, best = self._frontiers[names, cost]
        at = bisect_right(costs, limit)
        return best[at - 1] if at else None


def _frontier(records: Iterable[Record], names: tuple[str, ...], cost: str) -> tuple[list[float], list[Record]]:
    """The evaluated records that come first among all that cost no more, and their costs, which rise."""
    known = [r for r in records if accuracy(r) > -math.inf and getattr(r, cost) is not None]
    best: list[Record] = []
    for record in sorted(known, key=lambda r: (getattr(r, cost), _order(r, names))):
        if not best or _order(record, names) < _order(best[-1], names):
            best.append(record)
    return [getattr(r, cost) for r in best], best


def _order(record: Record, names: Sequence[str]) -> tuple[float, ...]:
    """A key that sorts the better record before the worse one, and no two records as equal."""
    values = (getattr(record, name) for name in (*names, *(c for c in COSTS if c not in names)))
    return (-accuracy(record), *(math.inf if value is None else value for value in values), record.stitch)


def _fits(record: Record, asked: Mapping[str, Limit]) -> bool:
    costs = ((getattr(record, name), limit) for name, limit in asked.items())
    return all(cost is not None and cost <= limit for cost, limit in costs)


def _checked(name: str, limit: object) -> Limit:
    if name not in COSTS:
        raise InvalidBudget(f"'{name}' is not a cost; a budget limits {', '.join(COSTS)}")
    return checked_limit(name, limit)


def _infeasible(records: Sequence[Record], asked: Mapping[str, Limit]) -> BudgetInfeasible:
    known = [r for r in records if all(getattr(r, name) is not None for name in asked)]
    if not known:
        return BudgetInfeasible('there are no stitches to choose from', {})
    nearest = min(known, key=lambda r: (max(excess(getattr(r, n), limit) for n, limit in asked.items()), r.stitch))
    costs = {name: getattr(nearest, name) for name in asked}
    return infeasible('no stitch has', asked, f'stitch {nearest.stitch} ({nearest.legs})', costs)
