"""The requests that wait for one worker, seen from a start time; a long queue is judged about as fast as a short one.

The schedules of `schedule` look at every batch size for every request. Here they do so for the first `EXACT` requests.
Those behind them are shown to be in time by batches of known sizes: with first deadlines d_j and times T_j, all are in
time if the worker starts by

    min over j of d_j - (T_0 + ... + T_j).

These batches are full ones where the requests ask for one accuracy, or where full batches at the highest accuracy
suffice, and those of the plan (`planned_batches`) elsewhere. This is a sufficient condition. What it cannot show is
treated as impossible, so nothing that was promised becomes late. Queues of up to `EXACT` requests and a batch are
always judged exactly. This module needs no torch.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Sequence
from itertools import compress, count
from operator import sub, truediv
from typing import NamedTuple

from .planned_batches import Plan, marks_of_kept
from .schedule import answers_all, finishes, greedy_end, latest_starts
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
        plan: batches that hold all requests.
        begin: the time in seconds.
        scale: seconds per table second.
    """

    choices: Choices
    deadlines: tuple[float, ...]
    floors: tuple[int, ...]
    plan: Plan
    begin: float
    scale: float

    def slack(self, stop: int | None = None, first: int = 0) -> list[float]:
        """Returns the table seconds until the deadline of each request from `first` to before `stop`."""
        begin, scale = self.begin, self.scale  # a call of `in_table_seconds` for each would take three times as long
        return [(deadline - begin) / scale + ROUNDING for deadline in self.deadlines[first:stop]]

    def after(self, size: int) -> Backlog:
        """Returns the backlog without the first `size` requests."""
        plan = self.plan.split(size, self.deadlines[size : size + 1])[1]
        return self._replace(deadlines=self.deadlines[size:], floors=self.floors[size:], plan=plan)

    def without(self, lost: Collection[int]) -> Backlog:
        """Returns the backlog without the requests at some places."""
        kept = marks_of_kept(len(self.deadlines), lost)
        deadlines, floors = tuple(compress(self.deadlines, kept)), tuple(compress(self.floors, kept))
        return self._replace(deadlines=deadlines, floors=floors, plan=self.plan.kept(kept, deadlines, floors))

    def joined_by(self, more: int, due: float) -> Backlog:
        """Returns the backlog with `more` requests of any accuracy that are due in `due` table seconds."""
        deadline = self.begin + self.scale * (due - ROUNDING)
        place = bisect_left(self.deadlines, deadline)
        deadlines = (*self.deadlines[:place], *[deadline] * more, *self.deadlines[place:])
        return self._replace(
            deadlines=deadlines,
            floors=(*self.floors[:place], *[0] * more, *self.floors[place:]),
            plan=self.plan.joined_by_crowd(self.choices, more, place, deadlines),
        )

    def is_short(self) -> bool:
        """Whether the whole backlog is judged exactly."""
        return len(self.deadlines) <= EXACT + self.choices.most

    def can_start(self, start: float = 0.0) -> bool:
        """Whether all requests can be answered in time by a worker that starts `start` table seconds after `begin`."""
        return not self.deadlines or self._full_batches_suffice(start) or self.latest_starts()[0] >= start

    def admits(self, sizes: Sequence[int], known: Sequence[float]) -> tuple[bool, Sequence[float]]:
        """Whether all can be answered in time by batches that can still be filled.

        Args:
            sizes: (N,), the size for which a batch that starts with each request must leave room.
            known: earliest ends of the first 0, 1, ... requests, as far as an earlier call computed them.

        Returns:
            The answer, and the earliest ends that are known now.
        """
        room = max(sizes)
        if self._full_batches_suffice(0.0, room):
            return True, known
        starts = [math.inf] if self.is_short() else self.starts_from(EXACT, room)
        if max(starts) < 0:
            return False, known
        stop = len(sizes) if self.is_short() else EXACT + self.choices.most
        rooms = [self.choices.padded(size) for size in sizes[:stop]]
        ends = finishes(self.choices.fast, self.slack(stop), self.floors[:stop], known, rooms)
        if self.is_short():
            return ends[-1] < math.inf, ends
        return any(end <= start for end, start in zip(ends[EXACT:], starts, strict=False)), ends

    def latest_starts(self) -> list[float]:
        """Returns the latest times at which the worker may start with request 0, 1, ... (`schedule.latest_starts`).

        Of a long backlog they are lower bounds, as many as the largest batch has requests, and one more. The first is
        minus infinity where not all requests can be in time, and alone where those behind the first `EXACT` are not
        shown to be.
        """
        fast, most = self.choices.fast, self.choices.most
        if self.is_short():
            return latest_starts(fast, self.slack(), self.floors, least=0.0)
        slack = self.slack(EXACT + most - 1)
        rest = self._full_batches_start(1, 1, self._top())
        if rest >= self.choices.slowest:  # no batch can make the requests behind it late
            return [slack[0] - fast[self.floors[0]][1], *[rest] * most]
        tail = self.starts_from(EXACT, 1)
        if max(tail) < 0:
            return [-math.inf]  # whatever the requests before
        return latest_starts(fast, slack, self.floors[: len(slack)], tail, least=0.0)

    def pace(self, kept: float) -> float:
        """Returns table seconds per request; no level that needs more can answer all and keep `kept` in reserve."""
        stops = range(self.choices.most, len(self.deadlines), self.choices.most)
        due = [*self.deadlines[self.choices.most - 1 : -1 : self.choices.most], self.deadlines[-1]]
        rests = [(deadline - self.begin) / self.scale + ROUNDING - kept for deadline in due]
        pace: float = min(map(truediv, rests, [*stops, len(self.deadlines)]))
        return pace

    def suits(self, level: int, kept: float) -> bool:
        """Whether a level answers all in time with `kept` table seconds in reserve (`schedule.answers_all`).

        Behind the first `EXACT` requests, only full batches are considered.
        """
        row = self.choices.rows[level]
        if self._level_start(row, 0) >= kept:
            return True
        if self.is_short():
            return answers_all(row, [slack - kept for slack in self.slack()])
        slack = [slack - kept for slack in self.slack(EXACT + self.choices.most)]
        found = greedy_end(row, slack, EXACT)
        return found is not None and found[1] + kept <= self._level_start(row, found[0])

    def _level_start(self, row: Sequence[float], at: int) -> float:
        """Returns a start from which batches of the largest size answer request `at` and those behind it in time."""
        step = row[-1] * self.scale
        firsts = self.deadlines[at :: self.choices.most]
        return self.in_table_seconds(min(map(sub, firsts, count(step, step)))) - ROUNDING

    def _top(self) -> int:
        return int(self.plan.floors.max())

    def _full_batches_suffice(self, start: float, room: int = 1) -> bool:
        """Whether full batches after a first one of some size answer all in time; False does not say the opposite."""
        top = self._top()
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
        return self.in_table_seconds(min(last, min(map(sub, firsts[:-1], count(step, step)), default=math.inf)))

    def starts_from(self, place: int, room: int) -> list[float]:
        """Returns starts from which the requests from `place`, `place` + 1, ... on are answered in time.

        There are as many as the largest batch has requests: every schedule has a cut between two batches among them.

        Args:
            place: a place with at least as many requests behind it.
            room: batches take as long as if they held this many requests.
        """
        most = self.choices.most
        plan = self.planned_from(place)
        top = int(plan.floors.max())
        lowest = self._full_batches_start(place, room, top)
        if lowest >= self.in_table_seconds(self.deadlines[place + most - 1]):
            return [lowest] * most  # later than the deadlines of the requests before
        if plan.floors.min() == top:
            return [self._full_batches_start(place + i, room, top) for i in range(most)]
        return self._planned_starts(place, plan, room)

    def _planned_starts(self, place: int, plan: Plan, room: int) -> list[float]:
        """Returns `starts_from` by the batches of the plan; a cut inside a batch makes it smaller."""
        most, fast = self.choices.most, self.choices.padded(room)
        near = int(plan.starts().searchsorted(most))  # batches whose cuts are looked at one by one
        sizes, floors = plan.sizes[:near].tolist(), plan.floors[:near].tolist()
        behind = math.inf
        if near < len(plan.sizes):
            times = plan.seconds(self.choices, room)[near:].cumsum()
            behind = self.in_table_seconds(float((plan.dues[near:] - self.scale * times).min()))
        starts, stop = [math.inf] * most, sum(sizes)
        for size, floor in zip(reversed(sizes), reversed(floors), strict=True):
            for cut in range(stop - size, min(stop, most)):
                due = self.in_table_seconds(self.deadlines[place + cut])
                starts[cut] = min(due, behind) - fast[floor][stop - cut]
            stop -= size
            behind = starts[stop]
        return starts

    def planned_from(self, place: int) -> Plan:
        """Returns the plan of the requests from `place` on."""
        return self.plan.split(place, self.deadlines[place : place + 1])[1]

    def in_table_seconds(self, time: float) -> float:
        """Returns a time in seconds as table seconds after `begin`."""
        return (time - self.begin) / self.scale + ROUNDING
