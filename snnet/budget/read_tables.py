"""Reads the latency tables in the folder of a net. No torch here."""

from __future__ import annotations

import logging
from pathlib import Path

from ..errors import SnnetError
from .latency_table import LatencyTable, Setup

_log = logging.getLogger(__name__)


def read_tables(folder: Path, stitches: int) -> dict[Path, LatencyTable]:
    """The latency tables of a net, one per setup and batch size, by their files.

    A file that is damaged or of another net is left out with a warning, and so is one with the setup and the batch size
    of another; the file that `snnet profile` would have written is kept then.

    Args:
        folder: of the tables; it may be missing.
        stitches: number of stitches of the net.
    """
    read: dict[Path, LatencyTable] = {}
    for path in sorted(folder.glob('*.json')):
        try:
            table = LatencyTable.read(path)
            table.check_rows(stitches)
        except SnnetError as error:
            _log.warning('%s is left out: %s', path, error)
        else:
            read[path] = table
    found: dict[Path, LatencyTable] = {}
    firsts: dict[tuple[Setup, int], Path] = {}
    for path in sorted(read, key=lambda path: path.name != read[path].file_name):
        table = read[path]
        first = firsts.setdefault((table.setup, table.batch), path)
        if first == path:
            found[path] = table
        else:
            _log.warning('%s is left out: it has the setup and the batch size of %s', path, first.name)
    return found
