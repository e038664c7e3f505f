"""Ends from outside: signals that ask a run to stop after the current step, and a watchdog for runs that hang."""

from __future__ import annotations

import faulthandler
import logging
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Within a `with` block SIGTERM, SIGINT and SIGUSR1 only set a flag, so that a step and its checkpoint end well.

    Clusters send one of them some seconds before they kill. A second SIGINT (Ctrl-C pressed twice) interrupts at once.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def lets_end(self, stage: Callable[[], None]) -> bool:
        """Runs a stage that has no steps, which a signal ends at once; returns whether it came to its end.

        It does not begin where a signal came after the last step had asked for one.

        Args:
            stage: it is done from its beginning when the run is started again.
        """
        self._at_once = True
        try:
            if self.received is not None:
                raise KeyboardInterrupt
            stage()
        except KeyboardInterrupt:
            if self.received is None:
                raise
            _log.info('%s: stopped before the net was saved; the same command does the rest', self.received)
            return False
        finally:
            self._at_once = False
        return True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._at_once or (number == signal.SIGINT and self.received == 'SIGINT'):
            self.received = signal.Signals(number).name
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name


class Watchdog:
    """Ends a process that shows no life for `timeout` seconds, with the stacks of its threads on standard error.

    Other ranks then lose contact and end too, so that a launcher can start all of them again.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout

    def __enter__(self) -> Watchdog:
        self.alive()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        faulthandler.cancel_dump_traceback_later()

    def alive(self) -> None:
        """Restarts the clock."""
        faulthandler.dump_traceback_later(self.timeout, exit=True, file=sys.__stderr__ or 2)
