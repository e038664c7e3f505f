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
_SURPRISE = 3.0
"""Standard deviations by which the arrivals of a moment exceed the mean where the rate has risen."""
_PATIENCE = 0.02
"""Share by which the usual deadline follows a later one; it follows an earlier one at once."""


class Load(NamedTuple):
    """Recent arrivals in numbers.

    Attributes:
        now: of the last arrival.
        rate: requests a second then, an exponential mean.
        deadline: seconds from arrival to deadline that are usual for the more urgent requests.
        windows: lengths in seconds, each twice the one before.
        peaks: most arrivals within each of them, fading; an arrival curve in the sense of network calculus.
        times: of arrivals within the longest window.
    """

    now: float
    rate: float
    deadline: float
    windows: tuple[float, ...]
    peaks: tuple[float, ...]
    times: tuple[float, ...]

    @classmethod
    def expected(cls, longest: float, capacity: float) -> Load:
        """Before anything has arrived: as dense as can be answered at all, in windows up to the `longest`."""
        windows = tuple(longest / 2**i for i in reversed(range(_WINDOWS)))
        return cls(-math.inf, 0.0, math.inf, windows, tuple(1 + capacity * window for window in windows), ())

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
        span = _SPAN * usual
        return Load(now, self.rate * math.exp(-passed / span) + 1 / span, usual, self.windows, peaks, times)

    def rate_at(self, now: float) -> float:
        """Requests a second: the mean, or what came since the usual deadline where that is more than chance gives."""
        if not self.times:
            return 0.0
        mean = self.rate * math.exp((self.now - now) / (_SPAN * self.deadline))
        expected = mean * self.deadline
        count = len(self.times) - bisect_left(self.times, now - self.deadline)
        return count / self.deadline if count > expected + _SURPRISE * math.sqrt(expected) + 1 else mean

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
