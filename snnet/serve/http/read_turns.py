"""Which requests are read in a turn of the event loop, and from when their age counts."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

MOST = 3
"""Most requests that begin in a turn: one takes half a millisecond, and replies wait meanwhile."""
IDLE = 0.0003
"""A loop that comes round in fewer seconds than this has nothing to do, and waits for what comes next."""


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

    A loop looks for new data once per turn, so what it finds may have been there since its last look. Of a loop that
    waits, that is no time at all; of one that works, some milliseconds, which count as the age of what it finds.

    Args:
        most: most requests that begin in a turn.
        clock: monotonic seconds.
    """

    def __init__(self, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._moment: float | None = None
        self._now = 0.0
        self._looked: float | None = None
        """When the loop last looked for data; None where it waits for some."""
        self._watches = False
        self._begun = 0
        self._held: deque[Reader] = deque()

    def moment(self, loop: asyncio.AbstractEventLoop) -> float:
        """The time from which the age of what is read in this turn counts: none of it was there before."""
        if self._moment is None:
            self._now = self._clock()
            self._moment = self._now if self._looked is None else self._looked
            loop.call_soon(self._end_turn, loop)
        return self._moment

    def worked(self, loop: asyncio.AbstractEventLoop) -> None:
        """Notes that this turn does something else than reading, so that the next one may find what waited for it."""
        if self._looked is None:
            self._looked = self._clock()
            self._watch(loop)

    def may_begin(self, reader: Reader, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether a request may be read now; if not, its connection keeps it until `read_held` is called."""
        self.moment(loop)
        if self._begun >= self._most:
            self._held.append(reader)
            return False
        self._begun += 1
        return True

    def _end_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._moment, self._looked = None, self._now
        self._watch(loop)
        self._begun = min(len(self._held), self._most)
        if self._begun:
            self.moment(loop)  # another turn follows
        for number in range(self._begun):
            reader = self._held.popleft() if number == 0 else self._held.pop()
            reader.read_held()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._watches:
            self._watches = True
            loop.call_soon(self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Notes that the loop has looked for data again, unless it had nothing to do since it did the last time."""
        now, before = self._clock(), self._looked
        self._watches, self._looked = False, None
        if before is not None and now - before > IDLE:
            self._looked = now
            self._watch(loop)
