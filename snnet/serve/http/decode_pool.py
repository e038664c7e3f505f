"""Threads that parse and decode requests, so that the event loop stays free; not more requests than can wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..service.refusal import Refusal

T = TypeVar('T')
INLINE = 1 << 20
"""Arrays of at most this many bytes are read in the event loop: handing them to a thread takes longer."""


class DecodePool:
    """A bounded pool of threads.

    Args:
        threads: number of threads.
        most: most calls that may run or wait at a time.
    """

    def __init__(self, threads: int, most: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix='snnet decode')
        self._most, self.pending = most, 0

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """The result of a function, which runs in a thread of the pool.

        Raises:
            Refusal: too many calls wait already.
        """
        if self.pending >= self._most:
            raise Refusal('busy', f'{self.pending} requests wait to be decoded, and no more may', 0.1)
        self.pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        finally:
            self.pending -= 1

    def close(self) -> None:
        """Ends the threads once they are idle."""
        self._pool.shutdown(wait=False, cancel_futures=True)
