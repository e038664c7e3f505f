"""The attempts of a run that its launcher restarts: from which steps, and why each ended."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import LostRanks, SnnetError
from ..utils.json_lines import JsonLines

ATTEMPTS = 3
"""Restarts in a row without a new checkpoint after which a launcher's further ones are refused."""


class Attempts:
    """A file with a line for each attempt and for each error that ended one.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)

    def begin(self, step: int) -> None:
        """Records that the run continues from `step` (first rank only).

        Raises:
            SnnetError: torchrun has restarted it from this step several times without success.
        """
        restart = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0'))
        rows = self._lines.read() if restart else []
        starts = [row['step'] for row in rows if isinstance(row.get('step'), int)]
        if len(starts) >= ATTEMPTS and set(starts[-ATTEMPTS:]) == {step}:
            raise SnnetError(
                f'{ATTEMPTS} attempts from step {step} ended before the next checkpoint, so it is not tried again; '
                f'last cause: {_cause(rows)}'
            )
        self._lines.rewrite([*rows, {'step': step}])

    def note_error(self, rank: int, error: BaseException) -> None:
        """Records why a rank ends. A file that cannot be written does not hide the error itself."""
        row: dict[str, Any] = {'rank': rank, 'error': ' '.join(f'{type(error).__name__}: {error}'.split())}
        with suppress(OSError), open(self._lines.path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(row) + '\n')


def _cause(rows: Sequence[dict[str, Any]]) -> str:
    """Why the last attempt ended: its first error, apart from those that only say that another rank was lost."""
    last = max(i for i, row in enumerate(rows) if 'step' in row)
    errors = [f'rank {row.get("rank")}: {row["error"]}' for row in rows[last:] if 'error' in row]
    own = [text for text in errors if LostRanks.__name__ not in text]
    return next(iter([*own, *errors]), 'unknown (killed?)')
