"""What a controller remembers of recent arrivals: their rate, how densely they come, how soon they are due."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import NamedTuple

MEMORY = 1000.0
"""Usual deadlines in which the memory of the densest arrivals fades to 1 / e."""
KEPT = 1024
"""Arrivals that are kept at most; more in a window are counted as so many."""
_WINDOWS = 8
_SPAN = 10.0
"""Usual deadlines in which the memory of the rate of arrivals fades to 1 / e."""
_BEFORE = 3.0
"""Requests that count as having come, as densely as can be answered at all, before the first one."""
_LEAST = 4
"""Arrivals of which a rate is taken at least."""
_SHORT = 8.0
"""Share of the usual deadline (one by this) over which a rate is taken at least."""
_RISEN, _CROWD = 3.0, 4.0
"""Standard deviations by which arrivals differ from what chance gives: for choosing, and before anyone is refused."""
_PATIENCE = 0.02
"""Share by which the usual deadline follows a later one; it follows an earlier one at once."""


class Load(NamedTuple):
    """Recent arrivals in numbers.

    Attributes:
        now: of the last arrival.
        came: arrivals, each counting less as time passes.
        span: seconds in which these came, counting less likewise.
        deadline: seconds from arrival to deadline that are usual for the more urgent requests.
        windows: lengths in seconds, each twice the one before.
        peaks: most arrivals within each of them, fading; an arrival curve in the sense of network calculus.
        times: of arrivals within the longest window.
    """

    now: float
    came: float
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
        return cls(-math.inf, _BEFORE, _BEFORE / capacity, math.inf, windows, peaks, ())

    def seen(self, now: float, deadline: float) -> Load:
        """After one more arrival, due `deadline` seconds later."""
        passed = now - self.now if self.times else 0.0
        usual = self.deadline
        usual = deadline if deadline < usual else usual + _PATIENCE * (deadline - usual)
        fade = math.exp(-passed / (MEMORY * usual))
        gone = bisect_left(self.times, now - max(self.windows[-1], min(self.deadline, deadline)))
        times = (*self.times[max(gone, len(self.times) - KEPT + 1) :], now)
        count = len(times)
        peaks = tuple(
            max(fade * peak, count - bisect_left(times, now - window))
            for peak, window in zip(self.peaks, self.windows, strict=True)
        )
        known = self._forgotten(now, usual)
        return Load(now, known[0] + 1, known[1], usual, self.windows, peaks, times)

    def _forgotten(self, now: float, usual: float) -> tuple[float, float]:
        """Count and span at a later moment."""
        if not self.times:
            return self.came, self.span
        span = _SPAN * usual
        kept = math.exp((self.now - now) / span)
        return kept * self.came, kept * self.span + (1 - kept) * span

    def rate_at(self, now: float) -> float:
        """Requests a second: the mean of late, or that of the last few arrivals where it is more than chance gives.

        So a rise is followed at once, and a fall only as the moments that saw the rise are forgotten.
        """
        came, span = self._forgotten(now, self.deadline)
        mean = came / span
        risen = [n / time for n, time in self._latest(now) if n > mean * time + _RISEN * math.sqrt(mean * time) + 1]
        return max([mean, *risen])

    def crowd_at(self, now: float) -> float:
        """Requests a second that are beyond doubt: the mean or that of the last few, less what chance gives."""
        came, span = self._forgotten(now, self.deadline)
        return max((n - _CROWD * math.sqrt(n)) / time for n, time in [(came, span), *self._latest(now)])

    def _latest(self, now: float) -> list[tuple[int, float]]:
        """The last 4, 8, 16, ... arrivals, and the seconds in which they came."""
        times, shortest, found, number = self.times, self.deadline / _SHORT, [], _LEAST
        while number <= len(times):
            found.append((number, max(now - times[-number], shortest)))
            number *= 2
        return found

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
        faded = count * math.exp((self.now - now) / (MEMORY * self.deadline)) if self.times else count
        return math.ceil(faded - 1e-9) - (self.now == now)
