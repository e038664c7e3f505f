"""Files of one JSON object per line, which survive crashes and full disks."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import write_text
from .typed_json import parse_json

_log = logging.getLogger(__name__)


class JsonLines:
    """A file of one JSON object per line. Reading skips what is none, such as a torn last line that a crash leaves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unwritten = ''

    def read(self) -> list[dict[str, Any]]:
        """Returns the objects of all complete lines."""
        return list(self._whole_lines())

    def append(self, row: dict[str, Any]) -> None:
        """Appends a line. If the disk is full, warns and tries again with the next line."""
        self._unwritten += json.dumps(row) + '\n'
        try:
            with open(self.path, 'ab', buffering=0) as file:
                end = file.tell()
                data = self._unwritten.encode()
                if file.write(data) != len(data):
                    file.truncate(end)
                    raise OSError('the disk is full')
        except OSError as error:
            _log.warning('%s cannot be appended to: %s', self.path, error)
        else:
            self._unwritten = ''

    def sync(self) -> None:
        """Flushes all lines to the disk."""
        if self.path.exists():
            with open(self.path, 'rb') as file:
                os.fsync(file.fileno())

    def rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Replaces all lines atomically."""
        write_text(self.path, ''.join(json.dumps(row) + '\n' for row in rows))

    def _whole_lines(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        for line in self.path.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                row = parse_json(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row
