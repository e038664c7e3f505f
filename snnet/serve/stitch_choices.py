"""What a controller chooses from: stitches with their accuracy and profiled batch times. No torch needed."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..budget.latency_table import Latency, LatencyTable
from ..budget.record import Record, accuracy
from ..errors import SnnetError

_log = logging.getLogger(__name__)
_QUANTILE = 1.2816
"""The 90 % quantile of the standard normal distribution; `Latency.high` is a 90 % quantile."""
LARGEST_BATCH = 1024
"""Batches above this size never run: the work of a decision grows with it, and no request waits for so many others."""
STEP = 0.05
"""Corrections of single stitches are rounded to this step of the logarithm, so that few corrected tables are built."""
KEPT = 8
"""Corrected tables that are remembered: a service needs the last one, and hardly ever comes back to older ones."""


class Choice(NamedTuple):
    """A stitch that may run.

    Attributes:
        stitch: id.
        top1: accuracy in percent.
        seconds: (M + 1,), median time of a batch by its size; the entry for size 0 is 0.
        spread: standard deviation of the logarithm of the time of a batch.
    """

    stitch: int
    top1: float
    seconds: tuple[float, ...]
    spread: float = 0.0


class Choices:
    """Stitches that a controller may choose from, as *levels* from the fastest to the most accurate.

    Level 0 runs whatever is fastest for the batch size, level i > 0 runs choice i. Stitches that are beaten on
    accuracy and time at every batch size are left out.

    Args:
        choices: stitches with equally many batch sizes, and positive times that never decrease with the batch size.

    Raises:
        SnnetError: there are no choices, or their batch sizes or times are not as described.
    """

    def __init__(self, choices: Iterable[Choice]) -> None:
        found = list(choices)
        if not found:
            raise SnnetError('there is nothing to choose from: no stitch has both an accuracy and a latency')
        if len({len(choice.seconds) for choice in found}) > 1 or len(found[0].seconds) < 2:
            raise SnnetError('the stitches to choose from need the same batch sizes, at least one')
        for choice in found:
            rising = all(a <= b for a, b in zip(choice.seconds[1:], choice.seconds[2:], strict=False))
            if not (rising and choice.seconds[1] > 0 and math.isfinite(choice.seconds[-1] + choice.top1)):
                raise SnnetError(f'stitch {choice.stitch} has times or an accuracy that cannot have been measured')
        self.derive(_undominated(found))

    def derive(self, choices: tuple[Choice, ...]) -> None:
        """Sets the choices and everything derived from them."""
        self.choices = choices
        self.most = len(choices[0].seconds) - 1
        self.spread = max(choice.spread for choice in choices)
        self.fast, self._fastest = _fastest(choices)
        self.rows = (self.fast[0], *(choice.seconds for choice in choices[1:]))
        self.full = tuple(max(range(1, len(row)), key=lambda size: size / row[size]) for row in self.fast)
        self.slowest = max(row[-1] for row in self.rows)
        self.rates = tuple(_rates(row) for row in self.rows)
        self._work: dict[int, tuple[float, ...]] = {}
        self._padded: dict[int, tuple[tuple[float, ...], ...]] = {1: self.fast}
        self._padded_arrays: dict[int, NDArray[np.float64]] = {}
        self._corrected: dict[tuple[int, ...], Choices] = {}

    def __len__(self) -> int:
        return len(self.choices)

    @classmethod
    def of(cls, records: Iterable[Record], tables: Iterable[LatencyTable]) -> Choices:
        """Builds choices from records and latency tables.

        Times between two measured batch sizes are interpolated linearly. Below the smallest size its time is used,
        and batches above the largest size never run; neither do those above `LARGEST_BATCH`. Stitches without an
        accuracy, or without a time in some table, are left out.

        Args:
            records: records with an accuracy (`top1`).
            tables: latency tables of one setup, one per batch size.

        Raises:
            SnnetError: no stitch is left, two tables have the same batch size, or the tables are of several setups.
        """
        found = sorted(tables, key=lambda table: table.batch)
        if len({table.setup for table in found}) > 1:
            raise SnnetError(f'tables of several setups cannot be mixed: {"; ".join(map(str, found))}')
        twice = next((a.batch for a, b in pairwise(found) if a.batch == b.batch), None)
        if twice is not None:
            raise SnnetError(f'several tables are for batch {twice}: keep one of them')
        by_batch = {table.batch: table for table in found if table.batch <= LARGEST_BATCH}
        if len(by_batch) < len(found):
            what = f'the table for batch {found[-1].batch:,} is not used: batches have at most {LARGEST_BATCH:,} images'
            if not by_batch:
                raise SnnetError(f'{what}, and there is no other table')
            _log.warning('%s', what)
        known = [r for r in records if accuracy(r) > -math.inf]
        return cls(
            Choice(record.stitch, accuracy(record), *_timed(by_batch, record.stitch))
            for record in known
            if by_batch and all(record.stitch in table.rows for table in by_batch.values())
        )

    def only(self, index: int) -> Choices:
        """Returns one of these choices alone, as a service with a fixed network has it."""
        return Choices([self.choices[index]])

    def pick(self, level: int, floor: int, batch: int) -> tuple[int, float]:
        """Returns which choice a level runs for a batch in which no choice below `floor` may run, and its time."""
        if 0 < level >= floor:
            return level, self.rows[level][batch]
        return self._fastest[floor][batch], self.fast[floor][batch]

    def floor(self, top1: float) -> int | None:
        """Returns the index of the first choice with at least this accuracy; None if there is none."""
        if self.choices[0].top1 >= top1:
            return 0
        return next((i for i, choice in enumerate(self.choices) if choice.top1 >= top1), None)

    def time(self, level: int, requests: int) -> float:
        """Returns the shortest time in which a level answers this many waiting requests, in any batches."""
        whole, rest = divmod(requests, self.most)
        if level not in self._work:
            self._work[level] = _work(self.rows[level])
        return whole * self.rows[level][self.most] + self._work[level][rest]

    def rate(self, level: int, longest: float) -> float:
        """Returns the most requests per second that a level sustains in batches of at most `longest` seconds."""
        row = self.rows[level]
        size = self.most
        while size > 1 and row[size] > longest:
            size -= 1
        return self.rates[level][size]

    @property
    def capacity(self) -> float:
        """Most requests per second that the fastest choices answer, in batches of any size."""
        return self.rates[0][-1]

    def padded(self, size: int) -> tuple[tuple[float, ...], ...]:
        """Returns shortest times in which batches below `size` take as long as one of `size`, so they can be filled."""
        if size not in self._padded:
            self._padded[size] = tuple((row[0], *(max(row[size], second) for second in row[1:])) for row in self.fast)
        return self._padded[size]

    def padded_array(self, size: int) -> NDArray[np.float64]:
        """Returns `padded` as an array of shape (choices, largest batch size + 1)."""
        if size not in self._padded_arrays:
            self._padded_arrays[size] = np.array(self.padded(size))
        return self._padded_arrays[size]

    def corrected(self, steps: tuple[int, ...]) -> Choices:
        """Returns these choices with each time multiplied by exp(steps x `STEP`)."""
        if not any(steps):
            return self
        known = self._corrected.get(steps)
        if known is not None:
            return known
        factors = [math.exp(STEP * step) for step in steps]
        corrected = copy(self)
        corrected.derive(  # all choices stay in their places, even if one is now slower than a more accurate one
            tuple(
                choice._replace(seconds=tuple(factor * second for second in choice.seconds))
                for choice, factor in zip(self.choices, factors, strict=True)
            )
        )
        if len(self._corrected) >= KEPT:
            self._corrected.clear()
        self._corrected[steps] = corrected
        return corrected


def _timed(tables: Mapping[int, LatencyTable], stitch: int) -> tuple[tuple[float, ...], float]:
    """Returns seconds by batch size, and the spread of the measurements."""
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
    """Returns the standard deviation of the logarithm of a lognormal time with this median and 90 % quantile."""
    return math.log(row.high / row.ms) / _QUANTILE if row.high > row.ms > 0 else 0.0


def _undominated(found: Sequence[Choice]) -> tuple[Choice, ...]:
    """Returns the choices on the frontier of accuracy and time for at least one batch size, least accurate first."""
    kept: set[int] = set()
    for size in range(1, len(found[0].seconds)):
        best = -math.inf
        for choice in sorted(found, key=lambda c: (c.seconds[size], -c.top1, c.stitch)):
            if choice.top1 > best:
                best = choice.top1
                kept.add(choice.stitch)
    return tuple(sorted((c for c in found if c.stitch in kept), key=lambda c: (c.top1, -c.seconds[-1], c.stitch)))


def _fastest(choices: Sequence[Choice]) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[int, ...], ...]]:
    """Returns, per index, the shortest times by batch size among the choices from it on, and the choices themselves."""
    times, which = [choices[-1].seconds], [(len(choices) - 1,) * len(choices[-1].seconds)]
    for index in range(len(choices) - 2, -1, -1):
        before = zip(choices[index].seconds, times[-1], which[-1], strict=True)
        pairs = [min((mine, index), (best, at)) for mine, best, at in before]
        times.append(tuple(time for time, _ in pairs))
        which.append(tuple(at for _, at in pairs))
    return tuple(reversed(times)), tuple(reversed(which))


def _work(row: Sequence[float]) -> tuple[float, ...]:
    """Returns the shortest time for 0, 1, ... waiting requests, up to the largest batch size."""
    work = [0.0]
    for requests in range(1, len(row)):
        work.append(min(row[size] + work[requests - size] for size in range(1, requests + 1)))
    return tuple(work)


def _rates(row: Sequence[float]) -> tuple[float, ...]:
    """Returns the most requests per second in batches of at most each size."""
    best = [0.0]
    for size in range(1, len(row)):
        best.append(max(best[-1], size / row[size]))
    return tuple(best)
