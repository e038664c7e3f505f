"""Schedules for requests that wait for one worker: which batches answer all of them in time.

Times are relative to a common start. A schedule orders requests by deadline and cuts this order into batches. For
requests without a required accuracy, no other schedule does better: given two batches, moving a request with an
earlier deadline into the earlier batch never makes anything late. What these functions call impossible is impossible.
This module needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Rows = Sequence[Sequence[float]]
"""`rows[floor][size]` is the shortest time in seconds of a batch of this size with no choice below `floor`."""


def finishes(
    rows: Rows,
    slack: Sequence[float],
    floors: Sequence[int],
    known: Sequence[float] = (),
    rooms: Sequence[Rows] | None = None,
) -> list[float]:
    """Computes the earliest end of the first k requests, for every k, if all of them are to be answered in time.

    With slack s_i and floor f_i, E_0 = 0 and

        E_k = min over sizes b of E_(k-b) + rows[max f][b], where that is at most s_(k-b), its first deadline.

    Args:
        rows: times of batches.
        slack: (N,), time until the deadline of each request, rising.
        floors: (N,), floor of each request.
        known: the first entries of the result, if an earlier call computed them.
        rooms: (N,), times of batches that start with each request, no less than `rows`; `rows` by default.

    Returns:
        (N + 1,), E_0 to E_N; infinite where it is impossible. It ends early with an infinite E_k if all are from there.
    """
    ends, most = list(known) or [0.0], len(rows[0]) - 1
    late = 0
    while len(ends) <= len(slack) and late < most:  # a batch ends at one of `most` neighbors, if the last one does not
        ends.append(next_end(rows, slack, floors, ends, rooms))
        late = late + 1 if ends[-1] == math.inf else 0
    return ends


def next_end(
    rows: Rows,
    slack: Sequence[float],
    floors: Sequence[int],
    ends: Sequence[float],
    rooms: Sequence[Rows] | None = None,
) -> float:
    """Returns E_k of `finishes` from E_0 to E_(k-1), which are `ends`."""
    most = len(rows[0]) - 1
    first, best, floor, row = len(ends), math.inf, 0, rows[0]
    for size, begin in enumerate(ends[: -most - 1 : -1], 1):
        first -= 1
        if floors[first] > floor:
            floor = floors[first]
            row = rows[floor]
        if row[size] >= best:
            break  # a larger batch takes at least as long
        end = begin + (row[size] if rooms is None else rooms[first][floor][size])
        if end < best and end <= slack[first]:
            best = end
    return best


def latest_starts(
    rows: Rows,
    slack: Sequence[float],
    floors: Sequence[int],
    tail: Sequence[float] = (math.inf,),
    least: float = -math.inf,
) -> list[float]:
    """Computes the latest time at which the worker may start with request i and still answer i, i + 1, ... in time.

    S_N is infinite, and S_i is the maximum over sizes b of `min(s_i, S_(i+b)) - rows[max f][b]`.

    Args:
        rows: times of batches.
        slack: (N,), time until the deadline of each request, rising.
        floors: (N,), floor of each request.
        tail: (K,), S_(N-K+1) to S_N, if they are known; more requests may follow the last one then.
        least: an S_i below this is as good as none.

    Returns:
        (N + 1,), S_0 to S_N; finite but for S_N, and negative where it is already too late. Minus infinity from the
        start up to where all earlier ones are known to be below `least`.
    """
    count, most, late = len(slack), len(rows[0]) - 1, 0
    known, sizes = count + 1 - len(tail), range(1, most + 1)
    starts = [*[-math.inf] * known, *tail]
    for first in range(known - 1, -1, -1):
        limit, best, floor, row = slack[first], -math.inf, 0, rows[0]
        stop = first + most
        for own, rest, size in zip(floors[first:stop], starts[first + 1 : stop + 1], sizes, strict=False):
            if own > floor:
                floor, row = own, rows[own]
            time = row[size]
            if limit - time <= best:
                break  # a larger batch has to start even earlier
            begin = (limit if limit < rest else rest) - time
            if begin > best:
                best = begin
        starts[first] = best
        late = late + 1 if best < least else 0
        if late == most:  # a batch that starts before all of these places ends at one of them, or before
            break
    return starts


def answers_all(row: Sequence[float], slack: Sequence[float]) -> bool:
    """Whether greedy batches, each as large as its first deadline allows, answer all requests in time."""
    return greedy_end(row, slack, len(slack)) is not None


def greedy_end(row: Sequence[float], slack: Sequence[float], stop: int) -> tuple[int, float] | None:
    """Runs greedy batches, each as large as its first deadline allows, until one ends at request `stop` or behind it.

    Returns:
        How many requests they answer, and the time they take; None if one of these requests is late.
    """
    most, at, count, begin = len(row) - 1, 0, len(slack), 0.0
    while at < stop:
        size = min(most, count - at)
        while size and begin + row[size] > slack[at]:
            size -= 1
        if not size:
            return None
        begin += row[size]
        at += size
    return at, begin
