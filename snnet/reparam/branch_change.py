"""What happened to a module at the end of an interval."""

from __future__ import annotations

from typing import NamedTuple


class Change(NamedTuple):
    """What happened to one module at the end of an interval.

    Attributes:
        interval: its number, from 1.
        name: of the module.
        added, cut: kinds of branches.
    """

    interval: int
    name: str
    added: tuple[str, ...]
    cut: tuple[str, ...]

    def __str__(self) -> str:
        return f'{self.name} +{" +".join(self.added)}' if self.added else f'{self.name} -{" -".join(self.cut)}'
