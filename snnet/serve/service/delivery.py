"""How answers get from the worker's thread to whoever waits for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, Protocol

_log = logging.getLogger(__name__)
Outcome = tuple[Any, Any]
"""A future of `Delivery.future`, and the value or the exception that it gets."""


class Delivery(Protocol):
    """Makes futures, and settles many of them at a time."""

    def future(self) -> Any:
        """A future that `settle` understands."""

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Gives each future its value, or its exception. Any thread may call it."""


class ThreadDelivery:
    """For threads that wait: futures of `concurrent.futures`."""

    def future(self) -> Future[Any]:
        """A future for threads."""
        return Future()

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Gives each future its value, or its exception."""
        _settle_all(outcomes)


class LoopDelivery:
    """For an event loop: it is woken once per batch.

    Waking it for each answer costs the worker a system call, and the lock of Python, each time.

    Args:
        loop: the loop in which the futures are awaited.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def future(self) -> asyncio.Future[Any]:
        """A future of the loop."""
        return self._loop.create_future()

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Gives each future its value, or its exception, in the loop."""
        try:
            self._loop.call_soon_threadsafe(_settle_all, outcomes)
        except RuntimeError:  # the loop is closed
            _log.debug('%d answers found no loop waiting for them', len(outcomes))


def _settle_all(outcomes: Sequence[Outcome]) -> None:
    for future, value in outcomes:
        give = future.set_exception if isinstance(value, BaseException) else future.set_result
        try:
            give(value)
        except (InvalidStateError, asyncio.InvalidStateError):  # the client went away, or was told that it is too late
            _log.debug('an answer found nobody waiting for it')


def settle(pairs: Sequence[tuple[Delivery, Outcome]]) -> None:
    """Settles futures of several deliveries, each delivery once."""
    grouped: dict[int, tuple[Delivery, list[Outcome]]] = {}
    for delivery, outcome in pairs:
        grouped.setdefault(id(delivery), (delivery, []))[1].append(outcome)
    for delivery, outcomes in grouped.values():
        delivery.settle(outcomes)


TO_THREADS = ThreadDelivery()
"""Keeps nothing, so one is enough."""
