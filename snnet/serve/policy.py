"""The rules of the controller: which level may run, how large a batch, and how much room admission leaves.

Times are in *table seconds*: divided by how much longer batches take than the tables say. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .recent_load import Load
from .schedule import lasts, latest_starts
from .stitch_choices import Choices

CROWDED = 0.7
"""Share of what batches of a size can answer that may arrive before admission leaves room for larger ones."""
HEADROOM = 1.1
"""What may come during a batch is reckoned to take this much longer: more may come after it."""
SPARED = 0.25
"""Share of the usual deadline that is kept where a batch leaves requests waiting, in case that the load rises."""
_EVEN = 1.01
"""Where time is no matter up to this factor, the smallest batch is run: it answers first."""


class Rush(NamedTuple):
    """The load at a moment, in table seconds.

    Attributes:
        load: recent arrivals.
        now: the moment, in seconds.
        scale: seconds of a table second.
        rate: requests a table second, taken rather too high than too low.
        crowd: those that have come without doubt, over whatever time.
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
        """The load at a moment."""
        rate, crowd = load.rate_at(now), load.crowd_at(now)
        return cls(load, now, scale, rate * scale, crowd * scale, load.deadline / scale)

    def burst(self, seconds: float) -> int:
        """How many more requests may come in so many table seconds."""
        return self.load.burst(self.now, seconds * self.scale)


def room(choices: Choices, rush: Rush) -> int:
    """Size of the batches that admission leaves room for: 1, or more where requests crowd.

    A request admitted with no time to spare can only be the first of a small batch, and small batches answer fewer
    requests a second; under a crowd one such request costs several others their answer. So each is admitted only if
    the batch that it begins may still be filled up to a size that answers what arrives, or else to the one that
    answers most. Of batches of s requests and S(s) seconds back to back, those requests take part that come in the
    last min(D - S, S) seconds before a batch begins, D being their deadline.
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
    """The most accurate level whose capacity bears the rate of arrivals.

    Capacity counts batches of at most half the usual deadline: a request may have to wait for one before its own.
    """
    longest = rush.due / 2
    return next((at for at in range(len(choices) - 1, 0, -1) if choices.rate(at, longest) >= rush.rate), 0)


def choose(
    choices: Choices,
    rush: Rush,
    slack: Sequence[float],
    floors: Sequence[int],
    starts: Sequence[float],
) -> tuple[int, int]:
    """The most accurate level that may run, and the size of its batch, that harm nobody.

    The requests in the batch are in time, and those behind it still can be (`starts`). Besides, for any level but the
    fastest: all that wait now could be answered in time at this level, with some to spare, lest it is missing later;
    the batch answers as many a second as arrive, or else leaves nobody waiting; and after it the fastest level could
    answer all that wait and all that may come meanwhile, in time for the next to come. One level more may run where it
    leaves nobody waiting: of all mixtures that bear a rate, that of two neighbors on the frontier is the best.

    Args:
        choices: to choose from.
        rush: the load.
        slack: time until the deadline of each request that waits, rising.
        floors: of each request.
        starts: of `latest_starts`.
    """
    even = _EVEN if room(choices, rush) == 1 else 1.0
    count = len(slack)
    level = highest_level(choices, rush)
    mixes = level < len(choices) - 1 and choices.rate(level, rush.due / 2) >= rush.rate
    for candidate in range(level + mixes, 0, -1):
        size, seconds = _batch(choices, candidate, slack, floors, starts, even)
        if not size or (size < count and (candidate > level or size < rush.rate * seconds)):
            continue
        kept = SPARED * rush.due if size < count else 0.0
        lasting = lasts(choices.rows[candidate], [due - kept for due in slack])
        if lasting and _spares(choices, rush, slack[size:], floors[size:], seconds):
            return candidate, size
    return 0, _batch(choices, 0, slack, floors, starts, even)[0]


def _spares(choices: Choices, rush: Rush, slack: Sequence[float], floors: Sequence[int], seconds: float) -> bool:
    """Whether the fastest level could answer what waits and what may come during a batch, all of it coming at once."""
    more = rush.burst(seconds)
    if seconds + HEADROOM * choices.time(0, len(slack) + more) > rush.due:
        return False
    queue = sorted([*zip(slack, floors, strict=True), *[(rush.due, 0)] * more])
    return latest_starts(choices.fast, [due for due, _ in queue], [floor for _, floor in queue])[0] >= seconds


def _batch(
    choices: Choices, level: int, slack: Sequence[float], floors: Sequence[int], starts: Sequence[float], even: float
) -> tuple[int, float]:
    """Size and time of the batch after which least is left to do, at the best rate of the level; size 0 if none is."""
    best, chosen, floor = math.inf, (0, 0.0), 0
    rate = choices.rates[level][-1]
    for size in range(1, min(choices.most, len(slack)) + 1):
        if floors[size - 1] > floor:
            floor = floors[size - 1]
        seconds = choices.pick(level, floor, size)[1]
        if seconds > slack[0]:
            break
        total = seconds + (len(slack) - size) / rate
        if seconds <= starts[size] and total * even < best + 1e-12:
            best, chosen = total, (size, seconds)
    return chosen
