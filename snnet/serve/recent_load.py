"""What a controller remembers of recent arrivals: their rate, their density and their usual deadlines."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import NamedTuple

MEMORY = 1000.0
"""Number of usual deadlines in which the memory of the densest arrivals fades to 1 / e."""
KEPT = 1024
"""Most arrivals that are kept; a window with more counts as this many."""
_WINDOWS = 8
_SPAN = 10.0
"""Number of usual deadlines in which the memory of the arrival rate fades to 1 / e."""
_BEFORE = 3.0
"""Requests assumed to have arrived before the first one, at the highest rate that can be answered."""
_LEAST = 4
"""Fewest arrivals from which a rate is estimated."""
_SHORT = 8.0
"""A rate is estimated over at least the usual deadline divided by this."""
_RISEN, _CROWD = 3.0, 4.0
"""Standard deviations above chance that count as a rise (for choosing a level) or a crowd (for refusing requests)."""
_PATIENCE = 0.02
"""Share by which the usual deadline moves towards a later one; it moves to an earlier one immediately."""


class Load(NamedTuple):
    """Statistics of recent arrivals.

    Attributes:
        now: time of the last arrival, in seconds.
        came: number of arrivals, weighted by exponential decay.
        span: seconds in which they arrived, with the same decay.
        deadline: usual seconds from arrival to deadline of the more urgent requests.
        windows: lengths of time windows in seconds, each twice the previous one.
        peaks: most arrivals within each window, decaying; an arrival curve in the sense of network calculus.
        times: times of the arrivals within the longest window.
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
        """Returns the load before the first arrival: `capacity` requests per second, windows to `longest` seconds."""
        windows = tuple(longest / 2**i for i in reversed(range(_WINDOWS)))
        peaks = tuple(1 + capacity * window for window in windows)
        return cls(-math.inf, _BEFORE, _BEFORE / capacity, math.inf, windows, peaks, ())

    def seen(self, now: float, deadline: float) -> Load:
        """Returns the load after one more arrival that is due `deadline` seconds later."""
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
        """Returns the decayed count and span at time `now`."""
        if not self.times:
            return self.came, self.span
        span = _SPAN * usual
        kept = math.exp((self.now - now) / span)
        return kept * self.came, kept * self.span + (1 - kept) * span

    def rate_at(self, now: float) -> float:
        """Returns requests per second: the recent mean, or the rate of the last few arrivals if significantly higher.

        The estimate therefore follows a rise immediately, and a fall only as the rise is forgotten.
        """
        came, span = self._forgotten(now, self.deadline)
        mean = came / span
        risen = [n / time for n, time in self._latest(now) if n > mean * time + _RISEN * math.sqrt(mean * time) + 1]
        return max([mean, *risen])

    def crowd_at(self, now: float) -> float:
        """Returns a lower confidence bound on requests per second, from the mean and from the last few arrivals."""
        came, span = self._forgotten(now, self.deadline)
        return max((n - _CROWD * math.sqrt(n)) / time for n, time in [(came, span), *self._latest(now)])

    def _latest(self, now: float) -> list[tuple[int, float]]:
        """Returns the counts 4, 8, 16, ... of the last arrivals, each with the seconds in which they arrived."""
        times, shortest, found, number = self.times, self.deadline / _SHORT, [], _LEAST
        while number <= len(times):
            found.append((number, max(now - times[-number], shortest)))
            number *= 2
        return found

    def burst(self, now: float, seconds: float) -> int:
        """How many more requests may arrive in the next `seconds`, if they come as densely as they recently did."""
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
