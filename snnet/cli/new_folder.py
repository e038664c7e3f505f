"""The folder that a command makes."""

from __future__ import annotations

from pathlib import Path

from ..errors import SnnetError


def new_folder(output: str) -> Path:
    """The folder that --output names.

    Raises:
        SnnetError: none is named, or it is there already.
    """
    if not output:
        raise SnnetError('name a new folder with --output')
    folder = Path(output)
    if folder.exists():
        raise SnnetError(f"name a new folder with --output; '{folder}' is there already")
    return folder
