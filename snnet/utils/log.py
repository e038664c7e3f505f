"""What a run says: progress on a terminal, plain lines in a file, and one JSON object a line for programs."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .files import write_text

_log = logging.getLogger(__name__)
_FORMAT = '%(asctime)s %(levelname)s %(message)s'


def set_up_logging(file: Path | None = None, quiet: bool = False) -> None:
    """Sends the package's messages to the terminal and, if given, to a file.

    Args:
        file: gets every message as a plain line.
        quiet: say only warnings on the terminal (ranks other than the first).
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


class Progress:
    """Progress with rate and time left: a bar on a terminal, elsewhere a line every ten seconds.

    Args:
        total: units of work.
        unit: what they are called.
        done: how many are done already.
        quiet: say nothing (ranks other than the first).
    """

    def __init__(self, total: int, unit: str, done: int = 0, quiet: bool = False) -> None:
        self.total, self.unit, self.done, self.quiet = total, unit, done, quiet
        self._begin, self._first, self._said = time.monotonic(), done, time.monotonic()
        terminal = sys.stderr.isatty() and not quiet
        self._bar = tqdm(total=total, initial=done, unit=unit, file=sys.stderr) if terminal else None

    def update(self, count: int, note: str = '') -> None:
        """Adds units that are done now, with a note on the state."""
        self.done += count
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        now = time.monotonic()
        if self.quiet or (now - self._said < 10 and self.done < self.total):
            return
        self._said = now
        rate = (self.done - self._first) / max(now - self._begin, 1e-9)
        left = (self.total - self.done) / rate if rate else float('inf')
        line = f'{self.done}/{self.total} {self.unit}  {rate:.1f}/s  {_clock(left)} left  {note}'.rstrip()
        # behind a bar the line is for the file alone
        _log.log(logging.DEBUG if self._bar is not None else logging.INFO, line)

    def expect(self, count: int) -> None:
        """Adds units of work to the total."""
        self.total += count
        if self._bar is not None:
            self._bar.total = self.total

    def close(self) -> None:
        """Takes the bar down."""
        if self._bar is not None:
            self._bar.close()


class JsonLines:
    """A file of one JSON object a line; a torn last line, as a crash leaves it, is dropped when it is opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unwritten = ''

    def read(self) -> list[dict[str, Any]]:
        """All whole lines."""
        return list(self._whole_lines())

    def append(self, row: dict[str, Any]) -> None:
        """Adds a line; where the disk is full says so, and adds it with the next one."""
        self._unwritten += json.dumps(row) + '\n'
        try:
            with open(self.path, 'ab', buffering=0) as file:
                end = file.tell()
                data = self._unwritten.encode()
                if file.write(data) != len(data):
                    file.truncate(end)
                    raise OSError('the disk is full')
        except OSError as error:
            _log.warning('%s could not be added to: %s', self.path, error)
        else:
            self._unwritten = ''

    def sync(self) -> None:
        """Waits until all lines are on the disk."""
        if self.path.exists():
            with open(self.path, 'rb') as file:
                os.fsync(file.fileno())

    def rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Replaces all lines, whole or not at all."""
        write_text(self.path, ''.join(json.dumps(row) + '\n' for row in rows))

    def _whole_lines(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        for line in self.path.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row


def _clock(seconds: float) -> str:
    if seconds == float('inf'):
        return '?'
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'
