"""uvicorn's HTTP protocol with limits on connections and headers, which notes when a request arrived."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from .http_limits import HttpLimits

MOST_HEADER = 65_536
"""Most bytes of the headers of a request."""


class ArrivalClock:
    """The time from which the age of a request counts: when the event loop saw that there was something to read.

    Where many connections have something to read at a time, the last of them is read after all the work that the others
    cause. Its request has waited for as long.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._moment: float | None = None

    def moment(self, loop: asyncio.AbstractEventLoop) -> float:
        """The time of the first call in this turn of the loop."""
        if self._moment is None:
            self._moment = self._clock()
            loop.call_soon(self._end_turn)
        return self._moment

    def _end_turn(self) -> None:
        self._moment = None


class HeaderTimer:
    """Calls a function unless the headers of a request are there in time.

    It keeps the function only while it runs, so that it does not tie a connection that has ended to itself.

    Args:
        loop: the event loop.
        seconds: how long they may take.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop, self._seconds = loop, seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self, late: Callable[[], None]) -> None:
        """Starts it, unless it runs."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._over, late)

    def stop(self) -> None:
        """Stops it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _over(self, late: Callable[[], None]) -> None:
        self._timer = None
        late()


def limited_protocol(limits: HttpLimits) -> type[asyncio.Protocol]:
    """uvicorn's protocol as a class that closes connections beyond a limit, and those whose headers are slow or long.

    The time of arrival is `scope['state']['arrived']`.

    Args:
        limits: how many connections, and how many seconds.
    """
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    arrivals = ArrivalClock()

    class LimitedProtocol(HttpToolsProtocol):
        """A connection of a client."""

        def connection_made(self, transport: Any) -> None:
            """Accepts a connection, or closes it at once where there are too many."""
            super().connection_made(transport)
            self._arrived, self._header = 0.0, -1  # bytes of the headers that are being read; -1 while none are
            self._timer = HeaderTimer(self.loop, limits.header_seconds)
            if len(self.connections) > limits.max_connections:
                transport.close()
            else:
                self._timer.start(self._give_up)

        def data_received(self, data: bytes) -> None:
            """Hands data on; between two requests, the clock of the next headers starts with their first byte."""
            if self.cycle is None or self.cycle.response_complete:
                self._timer.start(self._give_up)
            if self._header >= 0:
                self._header += len(data)
            super().data_received(data)
            if self._header > MOST_HEADER:
                self.transport.close()

        def on_message_begin(self) -> None:
            """Notes when a request begins."""
            super().on_message_begin()
            self._arrived, self._header = arrivals.moment(self.loop), 0

        def on_headers_complete(self) -> None:
            """Hands a request on once its headers are complete."""
            self.scope['state']['arrived'] = self._arrived
            self._header = -1
            self._timer.stop()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            """Forgets the connection."""
            self._timer.stop()
            super().connection_lost(exc)

        def _give_up(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return LimitedProtocol
