"""Schedules for requests that wait for one worker: which batches answer all of them in time.

Times are relative to a common start. A schedule orders requests by deadline and cuts this order into batches. For
requests without a required accuracy, no other schedule does better: given two batches, moving a request with an
earlier deadline into the earlier batch never makes anything late. What these functions call impossible is impossible.
This module needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import sub

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
        (N + 1,), E_0 to E_N; infinite where it is impossible.
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
                break  # a larger batch takes at least as long
            end = ends[first] + (row[size] if rooms is None else rooms[first][floor][size])
            if end < best and end <= slack[first]:
                best = end
        ends.append(best)
    return ends


def latest_starts(
    rows: Rows, slack: Sequence[float], floors: Sequence[int], tail: Sequence[float] = (math.inf,)
) -> list[float]:
    """Computes the latest time at which the worker may start with request i and still answer i, i + 1, ... in time.

    S_N is infinite, and S_i is the maximum over sizes b of `min(s_i, S_(i+b)) - rows[max f][b]`.

    Args:
        rows: times of batches.
        slack: (N,), time until the deadline of each request, rising.
        floors: (N,), floor of each request.
        tail: (K,), S_(N-K+1) to S_N, if they are known; more requests may follow the last one then.

    Returns:
        (N + 1,), S_0 to S_N; finite but for S_N, and negative where it is already too late.
    """
    count, most = len(slack), len(rows[0]) - 1
    known = count + 1 - len(tail)
    starts = [*[math.inf] * known, *tail]
    for first in range(known - 1, -1, -1):
        limit, best, floor, row = slack[first], -math.inf, 0, rows[0]
        for size in range(1, min(most, count - first) + 1):
            if floors[first + size - 1] > floor:
                floor = floors[first + size - 1]
                row = rows[floor]
            time = row[size]
            if limit - time <= best:
                break  # a larger batch has to start even earlier
            rest = starts[first + size]
            begin = (limit if limit < rest else rest) - time
            if begin > best:
                best = begin
        starts[first] = best
    return starts


def least_work(least: Sequence[float], slack: Sequence[float], floors: Sequence[int]) -> float:
    """Returns the latest start that any schedule might allow: after it, some request is late for certain.

    All requests up to one have to be answered by its deadline, and each takes at least its share of the most
    productive batch of its own floor.

    Args:
        least: by floor, seconds per request in the batch that takes least per request.
        slack, floors: as for `latest_starts`, with at least one request.
    """
    latest: float = min(map(sub, slack, accumulate(map(least.__getitem__, floors))))
    return latest


def starts_of_sizes(row: Sequence[float], slack: Sequence[float], sizes: Sequence[int], enough: float) -> list[float]:
    """Computes lower bounds of `latest_starts` by batches of some sizes, several times as fast.

    Args:
        row: `row[size]` is the time of a batch, whatever its requests.
        slack: as for `latest_starts`.
        sizes: of the batches, rising from 1.
        enough: a start below this ends the computation, because those before it are not needed then.

    Returns:
        (N + 1,), or fewer: the last ones.
    """
    pairs = [(size, row[size]) for size in sizes]
    count = first = len(slack)
    starts = [math.inf] * (count + 1)
    while first and starts[first] >= enough:
        first -= 1
        limit, best = slack[first], -math.inf
        for size, time in pairs:
            if first + size > count or limit - time <= best:
                break  # a larger batch has to start even earlier
            rest = starts[first + size]
            begin = (limit if limit < rest else rest) - time
            if begin > best:
                best = begin
        starts[first] = best
    return starts[first:]


def answers_all(row: Sequence[float], slack: Sequence[float]) -> bool:
    """Whether greedy batches, each as large as its first deadline allows, answer all requests in time."""
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
