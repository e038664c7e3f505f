"""What happened in the last seconds, for the page and for a gauge."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, NamedTuple

SECONDS = 10.0
"""How far back `Recent` looks."""
_MOST = 20_000


class Happening(NamedTuple):
    """An image that was answered or refused.

    Attributes:
        moment: when, on the monotonic clock.
        in_time: whether it was answered before its deadline.
        stitch: what answered; None if nothing did.
        top1: accuracy of that stitch in percent, if it is known.
        seconds: from arrival to answer.
    """

    moment: float
    in_time: bool
    stitch: int | None
    top1: float | None
    seconds: float


class Recent:
    """The last seconds of a net, at most 20,000 images of them."""

    def __init__(self) -> None:
        self._seen: deque[Happening] = deque(maxlen=_MOST)

    def add(self, happening: Happening) -> None:
        """Notes an image."""
        self._forget(happening.moment - SECONDS)
        self._seen.append(happening)

    def attainment(self, now: float) -> float | None:
        """Percentage that was answered in time; None if nothing happened."""
        seen = self._since(now - SECONDS)
        return 100 * sum(h.in_time for h in seen) / len(seen) if seen else None

    def summary(self, now: float) -> dict[str, Any]:
        """The numbers that the page shows."""
        seen = self._since(now - SECONDS)
        answered = [h for h in seen if h.stitch is not None]
        times = sorted(1000 * h.seconds for h in answered)
        known = [h.top1 for h in answered if h.top1 is not None]
        return {
            'seconds': SECONDS,
            'rate': len(seen) / SECONDS,
            'attainment': self.attainment(now),
            'top1': sum(known) / len(known) if known else None,
            'p50_ms': times[len(times) // 2] if times else None,
            'p99_ms': times[int(0.99 * (len(times) - 1))] if times else None,
            'stitches': dict(Counter(str(h.stitch) for h in answered).most_common(100)),
            'last_stitch': answered[-1].stitch if answered else None,
        }

    def _since(self, moment: float) -> list[Happening]:
        self._forget(moment)
        return [*self._seen]

    def _forget(self, before: float) -> None:
        while self._seen and self._seen[0].moment < before:
            self._seen.popleft()
