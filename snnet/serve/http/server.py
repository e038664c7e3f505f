"""The life of the server: binds, starts the service, answers, reloads on SIGHUP, drains on SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...errors import MissingExtra, SnnetError, reason_of
from ..service.service import Service
from .http_limits import HttpLimits
from .middleware import Application

if TYPE_CHECKING:
    import uvicorn

_log = logging.getLogger(__name__)
SWITCH_SECONDS = 0.0001
"""How long a thread may keep Python's lock while another one waits: the worker needs it often between two batches."""
ACCEPTED = 16
"""Connections that are accepted in a turn of the loop."""
_POLL = 0.02


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address, which does not listen yet.

    Raises:
        SnnetError: the port is in use or may not be used, or there is no such address.
    """
    if not 0 <= port <= 65535:
        raise SnnetError(f'a port is a number from 0 to 65535, not {port}')
    bound = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if bound is not None:
            bound.close()
        reason = 'is in use by another program' if error.errno == 98 else f'cannot be used: {reason_of(error)}'
        raise SnnetError(f'port {port} of {host} {reason}; choose others with --host and --port') from None
    return bound


def listeners(bound: socket.socket) -> list[socket.socket]:
    """A socket and copies of it. uvloop accepts one connection of each in a turn, so others would wait unseen."""
    return [bound, *(bound.dup() for _ in range(ACCEPTED - 1))]


def serve(
    app: Application,
    service: Service,
    bound: socket.socket,
    limits: HttpLimits,
    drain_seconds: float = 20.0,
) -> None:
    """Answers requests until SIGTERM or SIGINT, and the requests that were admitted by then.

    Args:
        app: the application of the service.
        service: not started yet: it starts while the server answers /healthz already.
        bound: from `bind`.
        limits: what clients may send.
        drain_seconds: longest time from the signal to the end.

    Raises:
        SnnetError: the service cannot start.
        MissingExtra: uvicorn is not installed.
    """
    try:
        import httptools  # noqa: F401  # uvicorn's faster parser
        import uvicorn
    except ImportError as error:
        raise MissingExtra('serving', ['uvicorn', 'httptools'], 'serve', error) from error
    from .protocol import limited_protocol

    config = uvicorn.Config(
        app, http=limited_protocol(limits), loop='none', ws='none', lifespan='off', access_log=False,
        log_config=None, server_header=False, timeout_keep_alive=30, backlog=min(2048, 2 * limits.max_connections),
    )  # fmt: skip
    warnings.filterwarnings('ignore', module='PIL')  # of unusual metadata in what clients send
    sys.setswitchinterval(SWITCH_SECONDS)
    _run_fast(_run(uvicorn.Server(config), service, bound, drain_seconds))
    if service.failure is not None:
        raise service.failure


def _run_fast(running: Coroutine[None, None, None]) -> None:
    """Runs a coroutine to its end in the fastest loop that there is."""
    try:
        import uvloop
    except ImportError:  # it does not exist for Windows
        asyncio.run(running)
    else:
        uvloop.run(running)


async def _run(server: uvicorn.Server, service: Service, bound: socket.socket, drain_seconds: float) -> None:
    server.capture_signals = _no_capture  # type: ignore[method-assign]  # they would end the process with a signal
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _end, server, service, ending)
    if hasattr(signal, 'SIGHUP'):
        loop.add_signal_handler(signal.SIGHUP, lambda: threading.Thread(target=_reload_all, args=(service,)).start())
    threading.Thread(target=_start, args=(service, bound), name='snnet start', daemon=True).start()
    serving = asyncio.create_task(server.serve(sockets=listeners(bound)))
    try:
        await _until_drained(server, service, ending, drain_seconds)
        await serving
    finally:
        service.close()
        gc.unfreeze()  # what is frozen is not freed at the end of the process, and C++ libraries print that it leaks


def _start(service: Service, bound: socket.socket) -> None:
    try:
        service.start()
        gc.collect()
        gc.freeze()  # what is there by now stays, and looking at all of it takes longer than many a deadline
        gc.collect()  # how often it looks at the rest depends on how much it saw last
        host, port = bound.getsockname()[:2]
        _log.info('ready: http://%s:%d', f'[{host}]' if ':' in host else host, port)
    except SnnetError:
        _log.debug('the service cannot start', exc_info=True)  # `serve` raises it
    except Exception as error:
        _log.exception('the service cannot start')
        service.state, service.failure = 'broken', SnnetError(f'the service cannot start: {reason_of(error)}')


async def _until_drained(server: uvicorn.Server, service: Service, ending: asyncio.Event, drain_seconds: float) -> None:
    """Waits for the signal, then for what was admitted, and tells the server to end."""
    while not ending.is_set() and service.failure is None and not server.should_exit:
        await asyncio.sleep(_POLL)
    service.drain()
    end = asyncio.get_running_loop().time() + drain_seconds
    while (left := len(server.server_state.tasks)) and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(_POLL)
    if left:
        _log.warning('%d requests are not done after %g s: they are given up', left, drain_seconds)
        server.force_exit = True
    server.should_exit = True


def _end(server: uvicorn.Server, service: Service, ending: asyncio.Event) -> None:
    """The handler of SIGTERM and SIGINT; the second signal ends the process without waiting."""
    if ending.is_set():
        server.force_exit = server.should_exit = True
        return
    _log.info('draining: requests that were admitted are still answered')
    service.drain()
    ending.set()


def _reload_all(service: Service) -> None:
    for name in [*service.nets]:
        try:
            service.reload(name)
        except SnnetError as error:
            _log.error('%s is not reloaded, the old net goes on: %s', name, error)


@contextmanager
def _no_capture() -> Iterator[None]:
    yield
