"""uvicorn's HTTP protocol with limits on connections, headers and turns, which notes when a request arrived."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from .http_limits import HttpLimits
from .read_turns import ReadTurns

MOST_HEADER = 65_536
"""Most bytes of the headers of a request."""


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


class ReadsInTurns:
    """Part of a protocol of uvicorn: keeps a request where too many begin in a turn."""

    cycle: Any
    flow: Any
    loop: Any
    _turns: ReadTurns
    _held: list[bytes]
    _seen: float | None
    """When what is held arrived."""

    def data_received(self, data: bytes) -> None:
        """Reads data, or keeps it where too many requests begin in this turn."""
        if self._held:
            self._held.append(data)
        elif self._is_between_requests() and not self._turns.may_begin(self, self.loop):
            self._seen = self._turns.moment(self.loop)
            self._held.append(data)
            self.flow.pause_reading()
        else:
            self._read(data)

    def read_held(self) -> None:
        """Reads what was kept."""
        if not self._held:  # the connection has ended
            return
        held, self._held = self._held, []
        self.flow.resume_reading()
        self._read(b''.join(held))
        self._seen = None

    def on_response_complete(self) -> None:
        """Notes that a reply was written, which takes time, and forgets the body of a request refused unread."""
        self._turns.worked(self.loop)
        if self.cycle.response_complete:  # else it is the one behind, whose client did not wait for this reply
            self.cycle.body = bytearray()  # a connection keeps its last request, which may be for half a minute
        super().on_response_complete()  # type: ignore[misc]

    def _read(self, data: bytes) -> None:
        raise NotImplementedError

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete is True


def limited_protocol(limits: HttpLimits) -> type[asyncio.Protocol]:
    """uvicorn's protocol as a class that closes connections beyond a limit, and those whose headers are slow or long.

    The time of arrival is `scope['state']['arrived']`.

    Args:
        limits: how many connections, and how many seconds.
    """
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    turns = ReadTurns()

    class LimitedProtocol(ReadsInTurns, HttpToolsProtocol):
        """A connection of a client."""

        def connection_made(self, transport: Any) -> None:
            """Accepts a connection, or closes it at once where there are too many."""
            super().connection_made(transport)
            self._arrived, self._header = 0.0, -1  # bytes of the headers that are being read; -1 while none are
            self._turns, self._held, self._seen = turns, [], None
            self._timer = HeaderTimer(self.loop, limits.header_seconds)
            if len(self.connections) > limits.max_connections:
                transport.close()
            else:
                self._timer.start(self._give_up)

        def _read(self, data: bytes) -> None:
            """Hands data on; between two requests, the clock of the next headers starts with their first byte."""
            if self._is_between_requests():
                self._timer.start(self._give_up)
            if self._header >= 0:
                self._header += len(data)
            HttpToolsProtocol.data_received(self, data)
            if self._header > MOST_HEADER:
                self.transport.close()

        def on_message_begin(self) -> None:
            """Notes when a request begins."""
            super().on_message_begin()
            self._arrived, self._header = turns.moment(self.loop) if self._seen is None else self._seen, 0

        def on_headers_complete(self) -> None:
            """Hands a request on once its headers are complete."""
            self.scope['state']['arrived'] = self._arrived
            self._header = -1
            self._timer.stop()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            """Forgets the connection."""
            self._timer.stop()
            self._held.clear()
            super().connection_lost(exc)

        def _give_up(self) -> None:
            if self._is_between_requests():
                self.transport.close()

    return LimitedProtocol
