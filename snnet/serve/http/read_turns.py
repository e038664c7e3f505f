"""Which requests are read in a turn of the event loop, and from when their age counts."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

MOST = 8
"""Most requests that begin in a turn: reading and admitting them takes some milliseconds."""


class Reader(Protocol):
    """A connection that may have to wait for its turn."""

    def read_held(self) -> None:
        """Reads what it was told to keep."""


class ReadTurns:
    """Lets a few requests begin in each turn of the event loop, and keeps the others for later turns.

    Replies are written between two turns. When a thousand connections have something to read, a turn that reads all of
    them takes longer than many a deadline, and every reply is late. So only a few begin. Among those that wait, the
    newest come first, because they can still be answered in time. One of each turn is the oldest, so that none waits
    for ever.

    Args:
        most: most requests that begin in a turn.
        clock: monotonic seconds.
    """

    def __init__(self, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._moment: float | None = None
        self._begun = 0
        self._held: deque[Reader] = deque()

    def moment(self, loop: asyncio.AbstractEventLoop) -> float:
        """The time of the first call in this turn, from which the age of what is read in it counts.

        Whoever is read last has waited for all the work that the others caused.
        """
        if self._moment is None:
            self._moment = self._clock()
            loop.call_soon(self._end_turn, loop)
        return self._moment

    def may_begin(self, reader: Reader, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether a request may be read now; if not, its connection keeps it until `read_held` is called."""
        self.moment(loop)
        if self._begun >= self._most:
            self._held.append(reader)
            return False
        self._begun += 1
        return True

    def _end_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._moment = None
        self._begun = min(len(self._held), self._most)
        if self._begun:
            self.moment(loop)  # another turn follows
        for number in range(self._begun):
            reader = self._held.popleft() if number == 0 else self._held.pop()
            reader.read_held()
