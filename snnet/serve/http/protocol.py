"""uvicorn's HTTP protocol with limits on connections and on the time that headers may take."""

from __future__ import annotations

import asyncio
from typing import Any

from .http_limits import HttpLimits


def limited_protocol(limits: HttpLimits) -> type[asyncio.Protocol]:
    """uvicorn's protocol as a class that closes connections beyond a limit, and those whose headers are slow.

    Args:
        limits: how many connections, and how many seconds.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class LimitedProtocol(H11Protocol):
        """A connection of a client."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """Accepts a connection, or closes it at once where there are too many."""
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                transport.close()
                return
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            """Hands data on; between two requests, the clock of the next headers starts with their first byte."""
            if self._timer is None and (self.cycle is None or self.cycle.response_complete):
                self._expect_headers()
            super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            """Forgets the connection."""
            self._headers_there()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            """Hands requests on once their headers are complete."""
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self._headers_there()

        def _expect_headers(self) -> None:
            self._timer = self.loop.call_later(limits.header_seconds, self._give_up)

        def _headers_there(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _give_up(self) -> None:
            self._timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return LimitedProtocol
