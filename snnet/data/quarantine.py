"""Training images that cannot be read: counted over all ranks, recorded, and refused past a limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import SnnetError
from ..utils.distributed import Ranks
from ..utils.json_lines import JsonLines
from ..utils.read_rgb import Unreadable
from .decode import Pictures


class Quarantine:
    """Training images that cannot be read: counted over all ranks, recorded once each, and refused past a limit.

    Each rank adds the bad images that it meets. In `settle`, which they call when the sum of their `unsettled` is not
    0, all ranks draw the same conclusions.

    Args:
        pictures: where the images come from.
        share: of the images that may be bad; unless it is 0, one always may.
        ranks: their findings are put together.
        file: JSON lines with the index, path and reason of each; those of a run that is resumed are known,
            unless they have been repaired.

    Raises:
        SnnetError: the share is not a number from 0 to 1, or too many images are known to be bad.
    """

    def __init__(self, pictures: Pictures, share: float, ranks: Ranks, file: Path) -> None:
        if not 0 <= share <= 1:
            raise SnnetError(f'max_bad_images is a share from 0 to 1, not {share}')
        self._pictures, self._share, self._ranks, self._lines = pictures, share, ranks, JsonLines(file)
        self.limit = max(1, int(share * len(pictures))) if share else 0
        self.bad: dict[int, str] = {}
        self._fresh: dict[int, str] = {}
        for row in self._lines.read():
            index = row.get('index')
            if isinstance(index, int) and 0 <= index < len(pictures) and row.get('path') == pictures.path(index):
                try:
                    pictures.read(index)  # it may have been repaired
                except Unreadable as error:
                    self.bad[index] = str(error)
        self._refuse_too_many()

    @property
    def unsettled(self) -> int:
        """How many images this rank has found since the ranks last put their findings together."""
        return len(self._fresh)

    def add(self, index: int, reason: str) -> None:
        """Notes a bad image and warns of it once."""
        if index not in self.bad and index not in self._fresh:
            self._fresh[index] = reason
            self._pictures.warn(index, reason)

    def settle(self) -> None:
        """Puts the findings of all ranks together and records them; every rank calls it at the same step.

        Raises:
            SnnetError: on every rank, where more images are bad than may be.
        """
        before = len(self.bad)
        for found in self._ranks.gather(self._fresh):
            for index, reason in found.items():
                self.bad.setdefault(index, reason)
        self._fresh = {}
        if self._ranks.first and len(self.bad) > before:
            self._lines.rewrite(self._rows())
        self._refuse_too_many()

    def _rows(self) -> list[dict[str, Any]]:
        return [{'index': i, 'path': self._pictures.path(i), 'reason': reason} for i, reason in self.bad.items()]

    def _refuse_too_many(self) -> None:
        if len(self.bad) > self.limit:
            examples = ', '.join(f'{row["path"]!r} ({row["reason"]})' for row in self._rows()[-3:])
            raise SnnetError(
                f'{len(self.bad)} of {len(self._pictures)} training images cannot be read, and {self.limit} may be '
                f'(--max-bad-images {self._share:g}): {self._lines.path} names them all, such as {examples}'
            )
