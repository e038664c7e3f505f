"""A limit of time for a part of a coroutine."""

from __future__ import annotations

import asyncio
from types import TracebackType


class TimeLimit:
    """A context manager that raises `TimeoutError` in the current task if its block takes too long.

    Python 3.11 has `asyncio.timeout`. What Python 3.10 has, `asyncio.wait_for`, costs a task and two turns of the loop.

    Args:
        seconds: how long the block may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._over = seconds, False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, 'only a task can be interrupted'
        self._task: asyncio.Task[object] = task
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._interrupt)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._over and kind is asyncio.CancelledError:
            if hasattr(self._task, 'uncancel'):  # Python 3.11
                self._task.uncancel()
            raise TimeoutError from None

    def _interrupt(self) -> None:
        self._over = True
        self._task.cancel()
