"""The rules of the controller: which level may run, with which batch size, and what admission leaves room for.

Times are in *table seconds*: seconds divided by the factor by which batches take longer than the tables say. A *level*
is a row of `Choices`. This module needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .backlog import Backlog
from .recent_load import Load
from .stitch_choices import Choices

CROWDED = 0.7
"""Utilization of a batch size above which admission leaves room for larger batches."""
HEADROOM = 1.1
"""Work that may arrive during a batch is multiplied by this, because more may arrive after it."""
SPARED = 0.25
"""Share of the usual deadline kept in reserve, in case the load rises, when a batch leaves requests waiting."""
EVEN = 1.01
"""Among batches whose total times differ by less than this factor, the smallest runs: it answers first."""


class Rush(NamedTuple):
    """The load at one time, in table seconds.

    Attributes:
        load: recent arrivals.
        now: the time in seconds.
        scale: seconds per table second.
        rate: requests per table second, estimated high rather than low.
        crowd: requests per table second that are certain, over the window where they are densest.
        due: usual time from arrival to deadline.
    """

    load: Load
    now: float
    scale: float
    rate: float
    crowd: float
    due: float

    @classmethod
    def at(cls, load: Load, now: float, scale: float) -> Rush:
        """Returns the load at time `now`."""
        rate, crowd = load.rate_at(now), load.crowd_at(now)
        return cls(load, now, scale, rate * scale, crowd * scale, load.deadline / scale)

    def burst(self, seconds: float) -> int:
        """How many more requests may arrive within this many table seconds."""
        return self.load.burst(self.now, seconds * self.scale)


def admission_batch_size(choices: Choices, rush: Rush) -> int:
    """Returns the batch size that admission leaves room for: 1, or more under heavy load.

    A request admitted with no time to spare can only start a small batch, and small batches answer fewer requests per
    second: under heavy load, one such request costs several others their answers. So a request is admitted only if the
    batch that it starts can still be filled up to a size that keeps up with the arrivals, or to the most productive
    size if none does. Let batches of s requests run back to back and take S(s) seconds each, and let D be the usual
    deadline: a batch can then hold the requests of the last min(D - S, S) seconds before it starts.
    """
    best, chosen = 0.0, 1
    for size, seconds in enumerate(choices.fast[0][1:], 1):
        if seconds >= rush.due:
            break
        part = min(rush.due - seconds, seconds)
        answered = min(size, rush.crowd * part) / seconds
        if seconds <= rush.due / 2 and size * CROWDED >= rush.crowd * seconds:
            return size
        if answered >= best:
            best, chosen = answered, size
    return chosen


def highest_level(choices: Choices, rush: Rush) -> int:
    """Returns the most accurate level whose capacity is at least the rate of arrivals.

    Only batches of at most half the usual deadline count: a request may have to wait for one batch before its own.
    """
    longest = rush.due / 2
    return next((at for at in range(len(choices) - 1, 0, -1) if choices.rate(at, longest) >= rush.rate), 0)


def choose(choices: Choices, rush: Rush, backlog: Backlog, starts: Sequence[float]) -> tuple[int, int]:
    """Returns the most accurate level that makes no request late, and the size of its batch.

    The requests in the batch are answered in time, and those behind it still can be (`starts`). A level above the
    fastest must also meet three conditions:

    - It could answer all waiting requests in time, with a reserve for a rising load.
    - Its batch keeps up with the arrivals, or leaves no request waiting.
    - Afterwards, the fastest level could answer what waits and what may arrive meanwhile, before further deadlines.

    The next level above the highest sustainable one may run where it leaves no request waiting, because the best
    mixture for a given rate is one of two neighbors on the frontier.

    Args:
        choices: the stitches to choose from.
        rush: the current load.
        backlog: the waiting requests.
        starts: result of `backlog.latest_starts`.
    """
    even = EVEN if admission_batch_size(choices, rush) == 1 else 1.0
    count = len(backlog.deadlines)
    level = highest_level(choices, rush)
    mixes = level < len(choices) - 1 and choices.rate(level, rush.due / 2) >= rush.rate
    reserve = SPARED * rush.due
    pace = math.inf if count <= choices.most else (1 + 1e-9) * backlog.pace(reserve)
    for candidate in range(level + mixes, 0, -1):
        if choices.rates[candidate][-1] * pace < 1:
            continue  # too slow for all waiting requests
        size, seconds = _batch(choices, candidate, backlog, starts, even)
        if not size or (size < count and (candidate > level or size < rush.rate * seconds)):
            continue
        kept = reserve if size < count else 0.0
        if backlog.suits(candidate, kept) and _leaves_time(choices, rush, backlog.after(size), seconds):
            return candidate, size
    return 0, _batch(choices, 0, backlog, starts, even)[0]


def _leaves_time(choices: Choices, rush: Rush, backlog: Backlog, seconds: float) -> bool:
    """Whether the fastest level could then answer what waits and what may arrive during the batch, all at once."""
    more = rush.burst(seconds)
    if seconds + HEADROOM * choices.time(0, len(backlog.deadlines) + more) > rush.due:
        return False
    return backlog.joined_by(more, rush.due).can_start(seconds)


def _batch(choices: Choices, level: int, backlog: Backlog, starts: Sequence[float], even: float) -> tuple[int, float]:
    """Returns size and time of the batch after which least time is needed for the rest; size 0 if there is none."""
    best, chosen, floor = math.inf, (0, 0.0), 0
    count, limit = len(backlog.deadlines), backlog.slack(1)[0]
    for size in range(1, min(choices.most, count) + 1):
        if backlog.floors[size - 1] > floor:
            floor = backlog.floors[size - 1]
        seconds = choices.pick(level, floor, size)[1]
        if seconds > limit:
            break
        total = seconds + choices.time(level, count - size)  # at the rate of full batches, splitting would seem free
        if seconds <= starts[size] and total * even < best + 1e-12:
            best, chosen = total, (size, seconds)
    return chosen
