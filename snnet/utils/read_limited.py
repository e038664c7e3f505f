"""Files of unknown origin, read with a limit."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import SnnetError

MAX_BYTES = 64 << 20
"""No text file that this package writes comes near this size."""


def read_limited(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns the content of a file from elsewhere.

    Args:
        path: of the file.
        max_bytes: a larger file is not read.

    Raises:
        FileNotFoundError: there is no such file.
        SnnetError: it cannot be read, is too large, or is a folder, a pipe or a device, which might never end.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0))  # a pipe would wait for a writer
        with open(handle, 'rb') as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise SnnetError(f'{path} is not a regular file')
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SnnetError(f'{path} cannot be read: {error.strerror}') from None
    if len(data) > max_bytes:
        raise SnnetError(f'{path} has more than {max_bytes:,} bytes')
    return data
