"""Progress of long work: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

_log = logging.getLogger(__name__)


class Progress:
    """Reports progress with rate and time left: a bar on a terminal, a log line every ten seconds elsewhere.

    Args:
        total: units of work.
        unit: name of a unit, in the plural.
        done: units that are already done.
        quiet: report nothing (for ranks other than the first).
    """

    def __init__(self, total: int, unit: str, done: int = 0, quiet: bool = False) -> None:
        self.total, self.unit, self.done, self.quiet = total, unit, done, quiet
        self._begin, self._first, self._said = time.monotonic(), done, time.monotonic()
        terminal = sys.stderr.isatty() and not quiet
        self._bar = tqdm(total=total, initial=done, unit=unit, file=sys.stderr) if terminal else None

    def update(self, count: int, note: str = '') -> None:
        """Counts units that have just been done; `note` is shown behind them."""
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
        # with a bar on the terminal, the line goes to the log file only
        _log.log(logging.DEBUG if self._bar is not None else logging.INFO, line)

    def expect(self, count: int) -> None:
        """Adds units of work to the total."""
        self.total += count
        if self._bar is not None:
            self._bar.total = self.total

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    if seconds == float('inf'):
        return '?'
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'
