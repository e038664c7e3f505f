"""What a controller chooses from: stitches with accuracy and seconds a batch, by profiled tables. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from ..budget.frontier import Record, accuracy
from ..budget.latency_table import Latency, LatencyTable
from ..errors import SnnetError

_QUANTILE = 1.2816
"""The 90 % quantile of the standard normal distribution, which `Latency.high` is of."""
STEP = 0.05
"""Corrections of single stitches are taken in steps of this logarithm, so that few corrected choices are made."""


class Choice(NamedTuple):
    """A stitch that may run.

    Attributes:
        stitch: id.
        top1: accuracy in percent.
        seconds: median of a batch by its size; the first entry, of no image, is 0.
        spread: standard deviation of the logarithm of a call's time.
    """

    stitch: int
    top1: float
    seconds: tuple[float, ...]
    spread: float = 0.0


class Choices:
    """Stitches that a controller may choose, as *levels* from the fastest to the most accurate.

    Level 0 runs whatever is fastest for the size of the batch, level i > 0 the choice i. Stitches that another one
    beats on accuracy and time at every measured batch size are left out.

    Args:
        choices: with equally many batch sizes each, times above 0 that never fall as the batch grows.

    Raises:
        SnnetError: there is none, or they differ in the sizes of their batches.
    """

    def __init__(self, choices: Iterable[Choice]) -> None:
        found = list(choices)
        if not found:
            raise SnnetError('there is nothing to choose from: no stitch has both an accuracy and a latency')
        if len({len(choice.seconds) for choice in found}) > 1 or len(found[0].seconds) < 2:
            raise SnnetError('the stitches to choose from need the same batch sizes, 1 at least')
        for choice in found:
            rising = all(a <= b for a, b in zip(choice.seconds[1:], choice.seconds[2:], strict=False))
            if not (rising and choice.seconds[1] > 0 and math.isfinite(choice.seconds[-1] + choice.top1)):
                raise SnnetError(f'stitch {choice.stitch} has times or an accuracy that no measurement gives')
        self.derive(_undominated(found))

    def derive(self, choices: tuple[Choice, ...]) -> None:
        """Sets the choices and what follows from them."""
        self.choices = choices
        self.most = len(choices[0].seconds) - 1
        self.spread = max(choice.spread for choice in choices)
        self.fast, self._fastest = _fastest(choices)
        self.rows = (self.fast[0], *(choice.seconds for choice in choices[1:]))
        self.rates = tuple(_rates(row) for row in self.rows)
        self._work = tuple(_work(row) for row in self.rows)
        self._roomy: dict[int, tuple[tuple[float, ...], ...]] = {1: self.fast}

    def __len__(self) -> int:
        return len(self.choices)

    @classmethod
    def of(cls, records: Iterable[Record], tables: Iterable[LatencyTable]) -> Choices:
        """The choices that records and tables of latency give.

        Between two measured batch sizes time is taken on the straight line, below the smallest it is that of the
        smallest, and none above the largest is ever run. A stitch that lacks accuracy, or a time in one of the tables,
        is left out.

        Args:
            records: with accuracy (`top1`).
            tables: of one setup, one a batch size.

        Raises:
            SnnetError: nothing is left, two tables have the same batch size, or tables of several setups.
        """
        found = sorted(tables, key=lambda table: table.batch)
        by_batch = {table.batch: table for table in found}
        if len({table.setup for table in found}) > 1 or len(by_batch) < len(found):
            raise SnnetError(f'tables of several setups cannot be mixed: {"; ".join(map(str, found))}')
        known = [r for r in records if accuracy(r) > -math.inf]
        return cls(
            Choice(record.stitch, accuracy(record), *_timed(by_batch, record.stitch))
            for record in known
            if found and all(record.stitch in table.rows for table in found)
        )

    def only(self, index: int) -> Choices:
        """A single one of these choices: what a service with one fixed network has."""
        return Choices([self.choices[index]])

    def pick(self, level: int, floor: int, batch: int) -> tuple[int, float]:
        """Index of the choice that a level runs for a batch that no choice below `floor` may answer, and its time."""
        if 0 < level >= floor:
            return level, self.rows[level][batch]
        return self._fastest[floor][batch], self.fast[floor][batch]

    def floor(self, top1: float) -> int | None:
        """Index of the first choice that is at least so accurate; None where there is none."""
        return next((i for i, choice in enumerate(self.choices) if choice.top1 >= top1), None)

    def time(self, level: int, requests: int) -> float:
        """Least seconds in which a level answers so many requests that all wait, in whatever batches."""
        whole, rest = divmod(requests, self.most)
        return whole * self.rows[level][self.most] + self._work[level][rest]

    def rate(self, level: int, longest: float) -> float:
        """Most requests a second that a level answers for good in batches of at most `longest` seconds (or of one)."""
        row = self.rows[level]
        size = self.most
        while size > 1 and row[size] > longest:
            size -= 1
        return self.rates[level][size]

    @property
    def capacity(self) -> float:
        """Most requests a second that the fastest choices answer in batches of any size."""
        return self.rates[0][-1]

    def roomy(self, size: int) -> tuple[tuple[float, ...], ...]:
        """Least times where smaller batches than `size` take as long as those do, so that they may still be filled."""
        if size not in self._roomy:
            self._roomy[size] = tuple((row[0], *(max(row[size], second) for second in row[1:])) for row in self.fast)
        return self._roomy[size]

    def corrected(self, steps: tuple[int, ...]) -> Choices:
        """The same choices with the time of each multiplied by exp(its steps x 0.05)."""
        return self if not any(steps) else _corrected(self, steps)


@lru_cache(maxsize=256)
def _corrected(choices: Choices, steps: tuple[int, ...]) -> Choices:
    factors = [math.exp(STEP * step) for step in steps]
    twin = object.__new__(Choices)  # with the same list: a choice that turns out slow stays in its place
    twin.derive(
        tuple(
            choice._replace(seconds=tuple(factor * second for second in choice.seconds))
            for choice, factor in zip(choices.choices, factors, strict=True)
        )
    )
    return twin


def _timed(tables: Mapping[int, LatencyTable], stitch: int) -> tuple[tuple[float, ...], float]:
    """Seconds by size of the batch, and the spread of the measurements."""
    sizes = list(tables)
    rows = [table.rows[stitch] for table in tables.values()]
    seconds = [0.0]
    for size in range(1, sizes[-1] + 1):
        at = next(i for i, known in enumerate(sizes) if known >= size)
        value = rows[at].ms
        if at and size < sizes[at]:
            share = (size - sizes[at - 1]) / (sizes[at] - sizes[at - 1])
            value = rows[at - 1].ms + share * (rows[at].ms - rows[at - 1].ms)
        seconds.append(max(value / 1000, seconds[-1]))
    return tuple(seconds), max(_spread(row) for row in rows)


def _spread(row: Latency) -> float:
    """Standard deviation of the logarithm of a lognormal time with this median and 90 % quantile."""
    return math.log(row.high / row.ms) / _QUANTILE if row.high > row.ms > 0 else 0.0


def _undominated(found: Sequence[Choice]) -> tuple[Choice, ...]:
    """Those that are on the frontier of accuracy and time for at least one batch size, from the least accurate on."""
    kept: set[int] = set()
    for size in range(1, len(found[0].seconds)):
        best = -math.inf
        for choice in sorted(found, key=lambda c: (c.seconds[size], -c.top1, c.stitch)):
            if choice.top1 > best:
                best = choice.top1
                kept.add(choice.stitch)
    return tuple(sorted((c for c in found if c.stitch in kept), key=lambda c: (c.top1, -c.seconds[-1], c.stitch)))


def _fastest(choices: Sequence[Choice]) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[int, ...], ...]]:
    """Least time by size of the batch among the choices from each index on, and which choice takes it."""
    times, which = [choices[-1].seconds], [(len(choices) - 1,) * len(choices[-1].seconds)]
    for index in range(len(choices) - 2, -1, -1):
        before = zip(choices[index].seconds, times[-1], which[-1], strict=True)
        pairs = [min((mine, index), (best, at)) for mine, best, at in before]
        times.append(tuple(time for time, _ in pairs))
        which.append(tuple(at for _, at in pairs))
    return tuple(reversed(times)), tuple(reversed(which))


def _work(row: Sequence[float]) -> tuple[float, ...]:
    """Least time for 0, 1, ... requests that all wait, each number up to the largest batch."""
    work = [0.0]
    for requests in range(1, len(row)):
        work.append(min(row[size] + work[requests - size] for size in range(1, requests + 1)))
    return tuple(work)


def _rates(row: Sequence[float]) -> tuple[float, ...]:
    """Most requests a second in batches of at most each size."""
    best = [0.0]
    for size in range(1, len(row)):
        best.append(max(best[-1], size / row[size]))
    return tuple(best)
