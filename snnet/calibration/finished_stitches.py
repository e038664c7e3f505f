"""Stitches that are adapted already, kept in a folder, so that an interrupted call goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import NoWeights, SnnetError
from ..saving.tensor_files import read_tensors, write_tensors
from ..utils.files import clear_temporaries, write_text
from ..utils.json_lines import JsonLines
from .adaptation import AdaptedStitch

CALL, LINES = 'adapting.json', 'adapted.jsonl'


class FinishedStitches:
    """What an earlier, interrupted call has done; a stitch is done once its line is written.

    Args:
        folder: made where it is missing; None keeps nothing.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._of = ''
        self._rows: dict[int, dict[str, Any]] = {}
        self.steps: int | None = None

    def open(self, of: str) -> None:
        """Reads what is there.

        Args:
            of: a digest of all that the work depends on.

        Raises:
            SnnetError: the folder holds the work of another call, or is a file.
        """
        self._of = of
        if self.folder is None:
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise SnnetError(f"finished stitches are kept in a folder, but '{self.folder}' is a file")
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_temporaries(self.folder)
        try:
            call = json.loads((self.folder / CALL).read_text(encoding='utf-8'))
            found, steps = str(call['of']), int(call['steps'])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            found, steps = '', 0
        if found != of:
            raise SnnetError(
                f'{self.folder} holds stitches that were adapted with another net, other images or other settings: '
                f'remove it, or name another folder'
            )
        self.steps = steps
        self._rows = {int(row['stitch']['stitch']): row for row in JsonLines(self.folder / LINES).read()}

    def begin(self, steps: int) -> None:
        """Notes the number of steps, which a later call takes over."""
        if self.folder is not None and self.steps is None:
            write_text(self.folder / CALL, json.dumps({'of': self._of, 'steps': steps}))

    def read(self, stitch: int) -> tuple[AdaptedStitch, dict[str, Tensor]] | None:
        """A stitch that is done, with what belongs to it; None where it has to be fitted (again)."""
        row = self._rows.get(stitch)
        if row is None or self.folder is None:
            return None
        try:
            adapted = AdaptedStitch.of_values(row['stitch'])
            return adapted, read_tensors(self._path(stitch), str(row['sha256'])) if adapted.kept else {}
        except (NoWeights, KeyError, TypeError):
            return None

    def write(self, adapted: AdaptedStitch, values: dict[str, Tensor]) -> None:
        """Keeps a stitch: first its tensors, then the line that says so."""
        if self.folder is None:
            return
        row: dict[str, Any] = {'stitch': adapted.to_values()}
        if adapted.kept:
            row['sha256'] = write_tensors(self._path(adapted.stitch), values)
        JsonLines(self.folder / LINES).append(row)

    def _path(self, stitch: int) -> Path:
        assert self.folder is not None
        return self.folder / f'stitch{stitch}.safetensors'
