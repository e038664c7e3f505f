"""A standing plan of batches for all waiting requests, which changes only around a request that joins or leaves.

A long queue is judged by the batches of its plan instead of by its requests: sixteen times fewer, and most of them as
they were at the last decision. The plan takes the least total time, whatever the deadlines: those matter for the first
requests only, which `backlog` judges exactly. This module needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .stitch_choices import Choices

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float64]

AROUND = 4
"""Number of batches on either side of a new request that are planned again with it."""


class Plan(NamedTuple):
    """Batches that together hold all waiting requests, in the order of the queue, column by column.

    Attributes:
        sizes: (B,), number of requests in each batch.
        floors: (B,), index of the first choice that is accurate enough for all its requests, or a later one.
        dues: (B,), deadline of its first request, in seconds.
    """

    sizes: IntArray
    floors: IntArray
    dues: FloatArray

    @classmethod
    def empty(cls) -> Plan:
        """Returns the plan of no requests."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

    @classmethod
    def least_time(cls, choices: Choices, deadlines: Sequence[float], floors: Sequence[int], room: int = 1) -> Plan:
        """Cuts requests into the batches that take the least time in total.

        With floors f_i: `W_0 = 0` and `W_k = min over sizes b of W_(k-b) + rows[max f][b]`.

        Args:
            choices: the stitches that may run.
            deadlines: (N,), deadline of each request in seconds, rising; at least one.
            floors: (N,), floor of each request.
            room: batches take as long as if they held this many requests.
        """
        if min(floors) == max(floors):
            sizes = _full_sizes(len(floors), max(choices.full[floors[0]], room))
        else:
            sizes = _shortest_sizes(choices.padded(room), floors)
        starts = list(accumulate(sizes, initial=0))[:-1]
        tops = [max(floors[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
        return cls(np.array(sizes), np.array(tops), np.array([deadlines[start] for start in starts]))

    def starts(self) -> IntArray:
        """Returns (B + 1,), the place of the first request of each batch, and the number of requests."""
        starts = np.zeros(len(self.sizes) + 1, np.int64)
        np.cumsum(self.sizes, out=starts[1:])
        return starts

    def seconds(self, choices: Choices, room: int = 1) -> FloatArray:
        """Returns (B,), the time of each batch, if it takes as long as one of `room` requests at least."""
        seconds: FloatArray = choices.padded_array(room)[self.floors, self.sizes]
        return seconds

    def joined(
        self, choices: Choices, deadlines: Sequence[float], floors: Sequence[int], place: int, room: int
    ) -> Plan:
        """Returns the plan with one more request; batches next to it are planned again.

        Args:
            choices: the stitches that may run.
            deadlines, floors: (N + 1,), those of all requests, the new one among them.
            place: where the new one stands.
            room: as for `least_time`.
        """
        starts = self.starts()
        at = max(0, int(starts.searchsorted(place, 'right')) - 1)
        first, stop = max(0, at - AROUND), min(len(self.sizes), at + AROUND + 1)
        part = slice(int(starts[first]), int(starts[stop]) + 1)
        new = Plan.least_time(choices, deadlines[part], floors[part], room)
        return _in_a_row(self._between(0, first), new, self._between(stop, None))

    def joined_by_crowd(self, choices: Choices, more: int, place: int, deadlines: Sequence[float]) -> Plan:
        """Returns the plan with `more` requests of any accuracy from `place` on.

        Args:
            choices: the stitches that may run.
            more: their number.
            place: where they stand.
            deadlines: (N + more,), those of all requests, the new ones among them.
        """
        if not more:
            return self
        new = Plan.least_time(choices, deadlines[place : place + more], (0,) * more)
        before, behind = self.split(place, deadlines[place + more : place + more + 1])
        return _in_a_row(before, new, behind)

    def split(self, place: int, due: Sequence[float]) -> tuple[Plan, Plan]:
        """Returns the plan for the requests before `place`, and that for the others.

        Args:
            place: number of requests before the cut.
            due: (1,), deadline of the first request behind it; not looked at if there is none.
        """
        starts = self.starts()
        at = int(starts.searchsorted(place, 'right')) - 1
        inside = place - int(starts[at])
        if not inside:
            return self._between(0, at), self._between(at, None)
        before, behind = self._between(0, at + 1), self._between(at, None)
        before, behind = before._replace(sizes=before.sizes.copy()), behind._replace(sizes=behind.sizes.copy())
        before.sizes[-1] = inside
        behind.sizes[0] -= inside
        behind = behind._replace(dues=behind.dues.copy())
        behind.dues[0] = due[0]
        return before, behind

    def kept(self, kept: bytearray, deadlines: Sequence[float], floors: Sequence[int]) -> Plan:
        """Returns the plan without some requests.

        Args:
            kept: (N,), result of `marks_of_kept`.
            deadlines, floors: those of the requests that are kept.
        """
        if not floors:
            return Plan.empty()
        left = np.add.reduceat(np.frombuffer(kept, np.uint8), self.starts()[:-1], dtype=np.int64)
        sizes = left[left > 0]
        starts = sizes.cumsum() - sizes
        tops = np.maximum.reduceat(np.fromiter(floors, np.int64, len(floors)), starts)
        return Plan(sizes, tops, np.array([deadlines[start] for start in starts.tolist()]))

    def _between(self, first: int, stop: int | None) -> Plan:
        return Plan(self.sizes[first:stop], self.floors[first:stop], self.dues[first:stop])


def marks_of_kept(count: int, lost: Collection[int]) -> bytearray:
    """Returns, for each of `count` requests, 1, or 0 at the places of those that are lost."""
    kept = bytearray(b'\1') * count
    for place in lost:
        kept[place] = 0
    return kept


def _in_a_row(*plans: Plan) -> Plan:
    return Plan(*(np.concatenate(columns) for columns in zip(*plans, strict=True)))


def _full_sizes(count: int, full: int) -> list[int]:
    whole, rest = divmod(count, full)
    return [full] * whole + [rest] * (rest > 0)


def _shortest_sizes(rows: Sequence[Sequence[float]], floors: Sequence[int]) -> list[int]:
    most = len(rows[0]) - 1
    totals, last = [0.0], [0]
    for stop in range(1, len(floors) + 1):
        best, chosen, floor, row = math.inf, 1, 0, rows[0]
        for size in range(1, min(most, stop) + 1):
            own = floors[stop - size]
            if own > floor:
                floor, row = own, rows[own]
            total = totals[stop - size] + row[size]
            if total < best:
                best, chosen = total, size
        totals.append(best)
        last.append(chosen)
    sizes, stop = [], len(floors)
    while stop:
        sizes.append(last[stop])
        stop -= last[stop]
    return sizes[::-1]
