"""Schedules of requests that wait for one worker, by earliest deadline first: which batches answer all in time.

Times are relative to one moment. A schedule runs consecutive requests in the order of their deadlines as one batch; for
requests that ask for no accuracy of their own no other schedule does better (of two batches, swapping a request
with an earlier deadline into the earlier one harms none), so what these functions call impossible is impossible.
No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Rows = Sequence[Sequence[float]]
"""Least time of a batch by its size, for each floor that its requests may set."""


def finishes(
    rows: Rows,
    slack: Sequence[float],
    floors: Sequence[int],
    known: Sequence[float] = (),
    rooms: Sequence[Rows] | None = None,
) -> list[float]:
    """Earliest end of the first 0, 1, ... requests when all of these are answered in time; infinite where impossible.

    Args:
        rows: times of batches.
        slack: time until the deadline of each request, rising.
        floors: of each request.
        known: the first entries of the result, where an earlier call has found them.
        rooms: times of the batches that begin with each request, no less than `rows`; the same by default.
    """
    ends = list(known) or [0.0]
    most = len(rows[0]) - 1
    for stop in range(len(ends), len(slack) + 1):
        best, floor, row = math.inf, 0, rows[0]
        for size in range(1, min(most, stop) + 1):
            first = stop - size
            if floors[first] > floor:
                floor = floors[first]
                row = rows[floor]
            if row[size] >= best:
                break  # larger batches take at least as long
            end = ends[first] + (row[size] if rooms is None else rooms[first][floor][size])
            if end < best and end <= slack[first]:
                best = end
        ends.append(best)
    return ends


def latest_starts(rows: Rows, slack: Sequence[float], floors: Sequence[int]) -> list[float]:
    """Latest moment at which the worker may begin with request 0, 1, ... and answer it and all behind it in time.

    The last entry, for no request, is infinite; minus infinity never occurs, but a moment may lie in the past.
    """
    count, most = len(slack), len(rows[0]) - 1
    starts = [math.inf] * (count + 1)
    for first in range(count - 1, -1, -1):
        limit, best, floor, row = slack[first], -math.inf, 0, rows[0]
        for size in range(1, min(most, count - first) + 1):
            if floors[first + size - 1] > floor:
                floor = floors[first + size - 1]
                row = rows[floor]
            time = row[size]
            if limit - time <= best:
                break  # larger batches must begin earlier still
            rest = starts[first + size]
            begin = (limit if limit < rest else rest) - time
            if begin > best:
                best = begin
        starts[first] = best
    return starts


def lasts(row: Sequence[float], slack: Sequence[float]) -> bool:
    """Whether batches of one row, each as large as its first deadline allows, answer all in time."""
    most, at, count, begin = len(row) - 1, 0, len(slack), 0.0
    while at < count:
        size = min(most, count - at)
        while size and begin + row[size] > slack[at]:
            size -= 1
        if not size:
            return False
        begin += row[size]
        at += size
    return True
