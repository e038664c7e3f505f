"""The requests that wait for one worker, seen from a start time; a long queue is judged about as fast as a short one.

The schedules of `schedule` look at every batch size for every request. Here they do so for the first `EXACT` requests;
the requests behind them are shown to be in time by full batches: with deadlines d_i, batches of b requests that take T
seconds, and the first of them starting with request i, all are in time if the worker starts by

    min over j of d_(i + j b) - (j + 1) T.

This is a sufficient condition. What it cannot show is treated as impossible, so nothing that was promised becomes late.
Queues of up to `EXACT` requests and a batch are always judged exactly. Where requests ask for different accuracies and
leave no time to spare, batches that waste least are tried instead, each with the accuracy that its requests ask for.
What they cannot show is judged exactly, which takes time for each request. This module needs no torch.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import count
from operator import sub, truediv
from typing import NamedTuple

from .schedule import answers_all, finishes, latest_starts, least_work, starts_of_sizes
from .stitch_choices import Choices

EXACT = 64
"""Number of requests at the front of a queue for which every batch size is considered."""
ROUNDING = 1e-9
"""Table seconds by which sums of floating-point numbers may be off."""


class Backlog(NamedTuple):
    """Waiting requests, and the time at which the worker can begin with them.

    Times relative to `begin` are in *table seconds*: seconds divided by `scale`.

    Attributes:
        choices: the stitches that may run.
        deadlines: (N,), deadline of each request in seconds, rising.
        floors: (N,), index of the first choice that is accurate enough for each request.
        begin: the time in seconds.
        scale: seconds per table second.
    """

    choices: Choices
    deadlines: tuple[float, ...]
    floors: tuple[int, ...]
    begin: float
    scale: float

    def slack(self, stop: int | None = None) -> list[float]:
        """Returns the table seconds until the deadline of each request before `stop`."""
        return [(deadline - self.begin) / self.scale + ROUNDING for deadline in self.deadlines[:stop]]

    def after(self, size: int) -> Backlog:
        """Returns the backlog without the first `size` requests."""
        return self._replace(deadlines=self.deadlines[size:], floors=self.floors[size:])

    def joined_by(self, more: int, due: float) -> Backlog:
        """Returns the backlog with `more` requests of any accuracy that are due in `due` table seconds."""
        deadline = self.begin + self.scale * (due - ROUNDING)
        place = bisect_left(self.deadlines, deadline)
        return self._replace(
            deadlines=(*self.deadlines[:place], *[deadline] * more, *self.deadlines[place:]),
            floors=(*self.floors[:place], *[0] * more, *self.floors[place:]),
        )

    def is_short(self) -> bool:
        """Whether the whole backlog is judged exactly."""
        return len(self.deadlines) <= EXACT + self.choices.most

    def can_start(self, start: float = 0.0) -> bool:
        """Whether all requests can be answered in time by a worker that starts `start` table seconds after `begin`."""
        if not self.deadlines or self._full_batches_suffice(start):
            return True
        if self._is_late(start):
            return False
        latest = self.latest_starts()[0]
        return latest >= start or (latest >= 0 and self._mixes() and self.exact_starts()[0] >= start)

    def admits(self, sizes: Sequence[int], known: Sequence[float]) -> tuple[bool, Sequence[float]]:
        """Whether all can be answered in time by batches that can still be filled.

        Args:
            sizes: (N,), the size for which a batch that starts with each request must leave room.
            known: earliest ends of the first 0, 1, ... requests, as far as an earlier call computed them.

        Returns:
            The answer, and the earliest ends that are known now.
        """
        if self._full_batches_suffice(0.0, max(sizes)):
            return True, known
        if self._is_late():
            return False, known
        tail = None if self.is_short() else self._tail_starts(max(sizes[EXACT:]))
        stop = len(sizes) if tail is None else EXACT + self.choices.most
        ends = self._ends(sizes, known, stop)
        if tail is None:
            return ends[-1] < math.inf, ends
        shown = any(end <= start for end, start in zip(ends[EXACT:], tail, strict=False))
        if shown or not self._mixes():
            return shown, ends
        ends = self._ends(sizes, ends, len(sizes))
        return ends[-1] < math.inf, ends

    def _ends(self, sizes: Sequence[int], known: Sequence[float], stop: int) -> list[float]:
        rooms = [self.choices.padded(size) for size in sizes[:stop]]
        return finishes(self.choices.fast, self.slack(stop), self.floors[:stop], known, rooms)

    def _mixes(self) -> bool:
        """Whether the backlog is long, and the requests behind the first `EXACT` differ in accuracy."""
        return not self.is_short() and min(self.floors[EXACT:]) < max(self.floors[EXACT:])

    def _is_late(self, start: float = 0.0) -> bool:
        """Whether some request of a long backlog is late for certain; False says nothing."""
        if self.is_short():
            return False
        return least_work(self.choices.least, self.slack(), self.floors) < start - ROUNDING

    def exact_starts(self) -> list[float]:
        """Returns the latest times at which the worker may start with request 0, 1, ... (`schedule.latest_starts`)."""
        return latest_starts(self.choices.fast, self.slack(), self.floors)

    def latest_starts(self) -> list[float]:
        """Returns `exact_starts` of a short backlog, and lower bounds for a long one, up to the largest batch size.

        A long one of several accuracies that is not shown to be in time is judged exactly, too.
        """
        fast, most = self.choices.fast, self.choices.most
        if self.is_short():
            return self.exact_starts()
        slack = self.slack(EXACT + most - 1)
        rest = self._full_batches_start(1, 1, max(self.floors))
        if rest >= self.choices.slowest:  # no batch can make the requests behind it late
            return [slack[0] - fast[self.floors[0]][1], *[rest] * most]
        starts = latest_starts(fast, slack, self.floors[: len(slack)], self._tail_starts(1))
        return self.exact_starts() if starts[0] < 0 and self._mixes() else starts

    def starts(self) -> list[float]:
        """Returns `latest_starts`, or -1 alone where a request of a long backlog is late for certain.

        Before a long backlog of several accuracies counts as infeasible, all of it is judged exactly.
        """
        starts = [-1.0] if self._is_late() else self.latest_starts()
        if self.is_short() or len(starts) == 1 or starts[0] >= 0 or not self._mixes():
            return starts
        return self.exact_starts()

    def without_lost(self, starts: list[float]) -> tuple[set[int], list[float]]:
        """Decides what to drop from a backlog that cannot be answered as a whole.

        Two ways are tried, and the one that drops less wins: dropping requests from the front until the rest is
        feasible, and dropping each request that cannot be answered in addition to those before it. A long backlog of
        one accuracy drops from the front only, because the second way hardly ever wins there. The place is looked for
        by batches of few sizes, and around it by all.

        Args:
            starts: result of `starts`.

        Returns:
            The places of the requests to drop, and the latest starts of those that remain.
        """
        if not self.is_short() and min(self.floors) == max(self.floors):
            return self._without_front()
        if len(starts) <= len(self.deadlines):
            starts = self.exact_starts()
        front = _first_in_time(starts)
        single = self._lost_one_by_one()
        if front <= len(single):
            return set(range(front)), starts[front:]
        kept = [place for place in range(len(self.deadlines)) if place not in single]
        deadlines = tuple(self.deadlines[place] for place in kept)
        floors = tuple(self.floors[place] for place in kept)
        return single, self._replace(deadlines=deadlines, floors=floors).exact_starts()

    def _without_front(self) -> tuple[set[int], list[float]]:
        count, most, floor = len(self.deadlines), self.choices.most, self.floors[0]
        slack, full = self.slack(), self.choices.full[floor]
        sizes = sorted({1, (full + 1) // 2, full})
        starts = starts_of_sizes(self.choices.fast[floor], slack, sizes, 0.0)
        behind = count + 1 - len(starts) + _first_in_time(starts)  # all from there on can be answered
        first, end = max(0, behind - EXACT), min(behind + most, count)
        tail = starts[len(starts) - 1 - (count - behind) :][: end - behind + 1]
        near = latest_starts(self.choices.fast, slack[first:end], self.floors[first:end], tail)
        front = _first_in_time(near)
        return set(range(first + front)), near[front:]

    def _lost_one_by_one(self) -> set[int]:
        """Returns the places of the requests that cannot be answered in addition to those before them."""
        kept_slack: list[float] = []
        kept_floors: list[int] = []
        ends, lost = [0.0], set()
        for place, (slack, floor) in enumerate(zip(self.slack(), self.floors, strict=True)):
            kept_slack.append(slack)
            kept_floors.append(floor)
            more = finishes(self.choices.fast, kept_slack, kept_floors, ends)
            if more[-1] < math.inf:
                ends = more
            else:
                kept_slack.pop()
                kept_floors.pop()
                lost.add(place)
        return lost

    def pace(self, kept: float) -> float:
        """Returns table seconds per request; no level that needs more can answer all and keep `kept` in reserve."""
        stops = range(self.choices.most, len(self.deadlines), self.choices.most)
        due = [*self.deadlines[self.choices.most - 1 : -1 : self.choices.most], self.deadlines[-1]]
        rests = [(deadline - self.begin) / self.scale + ROUNDING - kept for deadline in due]
        pace: float = min(map(truediv, rests, [*stops, len(self.deadlines)]))
        return pace

    def suits(self, level: int, kept: float) -> bool:
        """Whether a level answers all in time with `kept` table seconds in reserve (`schedule.answers_all`)."""
        row = self.choices.rows[level]
        step = row[-1] * self.scale
        firsts = self.deadlines[:: self.choices.most]
        if self._in_table_seconds(min(map(sub, firsts, count(step, step)))) - ROUNDING >= kept:
            return True
        return answers_all(row, [slack - kept for slack in self.slack()])

    def _full_batches_suffice(self, start: float, room: int = 1) -> bool:
        """Whether full batches after a first one of some size answer all in time; False does not say the opposite."""
        top = max(self.floors)
        first, limit = self.choices.full[top], self.slack(1)[0]
        while first:
            end = start + self.choices.fast[top][max(first, room)]
            if end <= limit and end <= self._full_batches_start(first, room, top):
                return True
            first //= 2
        return False

    def _full_batches_start(self, at: int, room: int, top: int) -> float:
        """Returns a start from which full batches answer request `at` and those behind it in time.

        Args:
            at: the first request.
            room: batches take as long as if they held this many requests.
            top: floor of all batches, at least that of each request.
        """
        size, row = self.choices.full[top], self.choices.fast[top]
        firsts = self.deadlines[at::size]
        if not firsts:
            return math.inf
        rest = len(self.deadlines) - at - size * (len(firsts) - 1)
        step = self.scale * row[max(size, room)]
        last = firsts[-1] - (len(firsts) - 1) * step - self.scale * row[max(rest, room)]
        return self._in_table_seconds(min(last, min(map(sub, firsts[:-1], count(step, step)), default=math.inf)))

    def _tail_starts(self, room: int) -> list[float]:
        """Returns starts from which the requests behind the first `EXACT`, `EXACT` + 1, ... are answered in time.

        There are as many as the largest batch has requests: every schedule has a cut between two batches among them.
        """
        most = self.choices.most
        top = max(self.floors[EXACT:])
        lowest = self._full_batches_start(EXACT, room, top)
        if lowest >= self._in_table_seconds(self.deadlines[EXACT + most - 1]):
            return [lowest] * most  # later than the deadlines of the requests before
        if min(self.floors[EXACT:]) < top:  # full batches would waste time
            return self._productive_starts(room)
        return [self._full_batches_start(EXACT + i, room, top) for i in range(most)]

    def _productive_starts(self, room: int) -> list[float]:
        """Returns `_tail_starts` by batches that waste least, one after the other (`Choices.productive`).

        Only starts between two of these batches are known; the others are minus infinity.
        """
        at, end = EXACT, 0.0
        batches: list[tuple[int, float, float]] = []  # first request, and time of the batches before it and with it
        while at < len(self.deadlines):
            size, seconds = self.choices.productive(self.floors[at : at + self.choices.most], room)
            batches.append((at, end, end + seconds))
            at, end = at + size, end + seconds
        starts, latest = [-math.inf] * self.choices.most, math.inf
        for first, before, after in reversed(batches):
            latest = min(latest, self._in_table_seconds(self.deadlines[first]) - after)
            if first < EXACT + self.choices.most:
                starts[first - EXACT] = latest + before
        return starts

    def _in_table_seconds(self, time: float) -> float:
        return (time - self.begin) / self.scale + ROUNDING


def _first_in_time(starts: Sequence[float]) -> int:
    """The first place from which on all can be answered by a worker that is free at once."""
    return next(place for place, start in enumerate(starts) if start >= 0)
