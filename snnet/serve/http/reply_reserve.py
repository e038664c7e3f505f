"""How long before the deadline of a request its batch has to be done, so that the reply can still be written."""

from __future__ import annotations

_RISE, _FALL = 0.2, 0.01
"""Shares by which the reserve follows longer and shorter times: it settles near the slowest twentieth."""
_MOST = 0.25
"""Largest share of a deadline that is kept in reserve."""


class ReplyReserve:
    """Seconds from the end of a batch until the event loop comes to its replies.

    The replies of a batch are written one after the other, between requests that are read meanwhile.
    """

    def __init__(self) -> None:
        self._seconds = 0.0

    def learn(self, seconds: float) -> None:
        """Notes how long a reply had to wait."""
        gap = seconds - self._seconds
        self._seconds += (_RISE if gap > 0 else _FALL) * gap

    def within(self, deadline: float) -> float:
        """Seconds to keep of a deadline of so many seconds."""
        return min(self._seconds, _MOST * deadline)
