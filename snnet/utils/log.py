"""Where the package's log messages go: the terminal and a file."""

from __future__ import annotations

import logging
from pathlib import Path

_FORMAT = '%(asctime)s %(levelname)s %(message)s'


def set_up_logging(file: Path | None = None, quiet: bool = False) -> None:
    """Sends the package's log messages to the terminal and, optionally, to a file.

    Args:
        file: receives every message as a plain line.
        quiet: show only warnings on the terminal (for ranks other than the first).
    """
    logger = logging.getLogger('snnet')
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING if quiet else logging.INFO)
    terminal.setFormatter(logging.Formatter('%(message)s'))
    logger.addHandler(terminal)
    if file is not None:
        lines = logging.FileHandler(file)
        lines.setFormatter(logging.Formatter(_FORMAT))
        logger.addHandler(lines)
    logging.captureWarnings(True)
