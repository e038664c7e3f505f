"""Gives memory that a crowd of requests has left behind back to the system.

When clients go away, thousands of images are freed, but between them lie a few objects that stay. glibc gives back by
itself what is free at the end of its heap only, so one such object near the end keeps all of it.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


@cache
def _trim() -> Any:
    """glibc's `malloc_trim`; None where another library allocates."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not in musl or macOS, and Windows has no such library
        return None


def give_back() -> None:
    """Gives back all whole pages that are free. It takes some milliseconds, in which other threads may run."""
    trim = _trim()
    if trim is not None:
        trim(0)
