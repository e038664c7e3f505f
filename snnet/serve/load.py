"""What a controller remembers of recent arrivals: their rate, how densely they come, how soon they are due."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import NamedTuple

MEMORY = 30.0
"""Seconds in which the memory of the densest arrivals fades to 1 / e."""
KEPT = 1024
"""Arrivals that are kept at most; more in a window are counted as so many."""
_WINDOWS = 8
_SPAN = 10.0
"""Usual deadlines over which the rate of arrivals is averaged."""
_PRIOR = 3.0
_SHORT = 8.0
_SURPRISE = 2.0
"""Standard deviations by which the arrivals of a moment exceed the mean where the rate has risen."""
_PATIENCE = 0.02
"""Share by which the usual deadline follows a later one; it follows an earlier one at once."""


class Load(NamedTuple):
    """Recent arrivals in numbers.

    Attributes:
        now: of the last arrival.
        count: arrivals, each counting less as time passes.
        span: seconds in which these came, counting less likewise.
        deadline: seconds from arrival to deadline that are usual for the more urgent requests.
        windows: lengths in seconds, each twice the one before.
        peaks: most arrivals within each of them, fading; an arrival curve in the sense of network calculus.
        times: of arrivals within the longest window.
    """

    now: float
    count: float
    span: float
    deadline: float
    windows: tuple[float, ...]
    peaks: tuple[float, ...]
    times: tuple[float, ...]

    @classmethod
    def expected(cls, longest: float, capacity: float) -> Load:
        """Before anything has arrived: as dense as can be answered at all, in windows up to the `longest`."""
        windows = tuple(longest / 2**i for i in reversed(range(_WINDOWS)))
        peaks = tuple(1 + capacity * window for window in windows)
        return cls(-math.inf, _PRIOR, _PRIOR / capacity, math.inf, windows, peaks, ())

    def seen(self, now: float, deadline: float) -> Load:
        """After one more arrival, due `deadline` seconds later."""
        passed = now - self.now if self.times else 0.0
        fade = math.exp(-passed / MEMORY)
        gone = bisect_left(self.times, now - max(self.windows[-1], min(self.deadline, deadline)))
        times = (*self.times[max(gone, len(self.times) - KEPT + 1) :], now)
        count = len(times)
        peaks = tuple(
            max(fade * peak, count - bisect_left(times, now - window))
            for peak, window in zip(self.peaks, self.windows, strict=True)
        )
        usual = self.deadline
        usual = deadline if deadline < usual else usual + _PATIENCE * (deadline - usual)
        known = self._forgotten(now, usual)
        return Load(now, known[0] + 1, known[1], usual, self.windows, peaks, times)

    def _forgotten(self, now: float, usual: float) -> tuple[float, float]:
        """Count and span at a later moment."""
        if not self.times:
            return self.count, self.span
        span = _SPAN * usual
        kept = math.exp((self.now - now) / span)
        return kept * self.count, kept * self.span + (1 - kept) * span

    def rate_at(self, now: float) -> float:
        """Requests a second."""
        count, span = self._forgotten(now, self.deadline)
        return max(count / span, self.surge_at(now))

    def surge_at(self, now: float) -> float:
        """Requests a second that have come at least"""
        times, shortest = self.times, self.deadline / _SHORT
        best, number = 0.0, 4
        while number <= len(times):
            best = max(best, (number - _SURPRISE * math.sqrt(number)) / max(now - times[-number], shortest))
            number *= 2
        return best

    def burst(self, now: float, seconds: float) -> int:
        """How many more requests may come in so many seconds from now on, if as densely as they have come of late."""
        at = bisect_left(self.windows, seconds)
        if at == len(self.windows):
            count = self.peaks[-1] * seconds / self.windows[-1]
        elif at == 0:
            count = self.peaks[0]
        else:
            short, low, high = self.windows[at - 1], self.peaks[at - 1], self.peaks[at]
            count = low + (high - low) * (seconds - short) / (self.windows[at] - short)
        faded = count * math.exp((self.now - now) / MEMORY) if self.times else count
        return math.ceil(faded - 1e-9) - (self.now == now)
