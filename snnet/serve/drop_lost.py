"""Which requests to drop from a queue that cannot be answered as a whole. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np

from .backlog import ROUNDING, Backlog
from .schedule import latest_starts, next_end

EXACTLY, ROUGHLY = 32, 16
"""How many requests of a long queue, and planned batches behind them, are looked at one by one."""


class Drop(NamedTuple):
    """What to drop from a queue, and what remains.

    Attributes:
        lost: places of the requests to drop.
        kept: the other requests.
        starts: latest starts of these (`Backlog.latest_starts`).
    """

    lost: Set[int]
    kept: Backlog
    starts: list[float]


def lost_requests(backlog: Backlog) -> Drop:
    """Decides what to drop from a backlog that cannot be answered as a whole.

    Two ways are tried, and the one that drops less wins: dropping requests from the front until the rest is feasible,
    and dropping each request that cannot be answered in addition to those before it.
    """
    single = _one_by_one(backlog)
    behind = 0 if backlog.is_short() else _first_planned_in_time(backlog, 0.0, 0)
    front = None
    if len(single) >= behind - EXACTLY:  # else the front would be longer, wherever it ends
        front = _front(backlog, behind)
    if front is None or len(single) < front[0]:
        kept = backlog.without(single)
        starts = kept.latest_starts()
        if starts[0] >= 0:
            return Drop(single, kept, starts)
    number, starts = front or _front(backlog, behind)
    lost = set(range(number))
    return Drop(lost, backlog.without(lost), starts)


def _front(backlog: Backlog, behind: int) -> tuple[int, list[float]]:
    """Returns how many requests to drop from the front so that the rest is feasible, and its latest starts.

    Args:
        backlog: the waiting requests.
        behind: a place in a long backlog from which on all can be answered. With every size of batches, some of those
            before it can, too.
    """
    choices, number = backlog.choices, len(backlog.deadlines)
    if backlog.is_short():
        starts = latest_starts(choices.fast, backlog.slack(), backlog.floors, least=0.0)
        front = _first_in_time(starts)
        return front, starts[front:]
    first, end = max(0, behind - EXACTLY), min(behind + choices.most, number)
    tail = [math.inf] if end == number else backlog.starts_from(behind + 1, 1)
    near = latest_starts(choices.fast, backlog.slack(end, first), backlog.floors[first:end], tail, least=0.0)
    front = _first_in_time(near)
    return first + front, near[front:]


def _first_in_time(starts: Sequence[float]) -> int:
    """The first place from which on all can be answered by a worker that is free at once."""
    return next(place for place, start in enumerate(starts) if start >= 0)


def _one_by_one(backlog: Backlog) -> set[int]:
    """Returns the places of the requests that cannot be answered in addition to those before them.

    Of a long backlog they are looked for among the first `EXACTLY` and in the next `ROUGHLY` batches of the plan;
    behind them, all are dropped up to those that can be answered.
    """
    if backlog.is_short():
        return _one_by_one_exactly(backlog, len(backlog.deadlines))[0]
    place, fast = EXACTLY, backlog.choices.fast
    lost, begin = _one_by_one_exactly(backlog, place)
    for size in backlog.planned_from(place).sizes[:ROUGHLY].tolist():
        end = begin + fast[max(backlog.floors[place : place + size])][size]
        if end <= backlog.in_table_seconds(backlog.deadlines[place]):
            begin = end  # all are kept, the usual case
        else:
            kept, begin = _kept_of_batch(backlog, list(range(place, place + size)), begin)
            lost.update(range(place, place + size))
            lost.difference_update(kept)
        place += size
    return lost.union(range(place, _first_planned_in_time(backlog, begin, place)))


def _one_by_one_exactly(backlog: Backlog, stop: int) -> tuple[set[int], float]:
    """Returns the places before `stop` of requests that cannot be answered in addition, and when the others are."""
    slack: list[float] = []
    floors: list[int] = []
    ends, lost = [0.0], set()
    for place, due in enumerate(backlog.slack(stop)):
        slack.append(due)
        floors.append(backlog.floors[place])
        end = next_end(backlog.choices.fast, slack, floors, ends)
        if end < math.inf:
            ends.append(end)
        else:
            slack.pop()
            floors.pop()
            lost.add(place)
    return lost, ends[-1]


def _kept_of_batch(backlog: Backlog, places: list[int], begin: float) -> tuple[list[int], float]:
    """Returns which requests of a batch can be answered by a worker that begins at a time, and when it ends."""
    fast, floors = backlog.choices.fast, backlog.floors
    while places:
        top = max(places, key=floors.__getitem__)
        due = backlog.in_table_seconds(backlog.deadlines[places[0]])
        end = begin + fast[floors[top]][len(places)]
        if end <= due:
            return places, end
        alone = begin + fast[floors[places[0]]][1] <= due
        places.remove(top if alone else places[0])
    return places, begin


def _first_planned_in_time(backlog: Backlog, begin: float, place: int) -> int:
    """Returns the first place from `place` on from which a worker that begins at a time can answer all as planned."""
    plan = backlog.planned_from(place)
    times = plan.seconds(backlog.choices)
    ends = times.cumsum()
    spare = (plan.dues - backlog.begin) / backlog.scale + ROUNDING - ends  # of each batch, if none is dropped
    least = np.minimum.accumulate(spare[::-1])[::-1]  # of a batch and those behind it
    late = np.flatnonzero(least + ends - times < begin)
    return place + int(plan.starts()[late[-1] + 1 if len(late) else 0])
