"""Many threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar('T')


def in_threads(work: Callable[[int], T], count: int = 16) -> list[T]:
    """Results of work(0), work(1), ..., each in a thread of its own; they begin together."""
    gate = threading.Barrier(count)

    def begin(i: int) -> T:
        gate.wait(30)
        return work(i)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))
