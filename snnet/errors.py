"""Errors that a user can act on: one sentence each, shown without a traceback by the scripts (exit code 2)."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SnnetError(ValueError):
    """Bad input. The message says what was asked, what is possible and by how much it missed."""


class InvalidBudget(SnnetError):
    """A budget that is no positive finite number, or no budget at all."""


class BudgetInfeasible(SnnetError):
    """No stitch fits the budget.

    Attributes:
        smallest: the smallest feasible value of each limit that was asked for, as a dict such as `{'flops': 1.3e9}`.
            With several limits it holds the costs of the one stitch that misses them least.
    """

    def __init__(self, message: str, smallest: dict[str, float]) -> None:
        super().__init__(message)
        self.smallest = smallest


class ForeignTable(SnnetError):
    """A table of latencies that was made with other weights or in another setup, or none at all."""


class UnknownStitch(SnnetError, IndexError):
    """A stitch id that is no integer from 0 to the number of stitches minus one."""


class CannotStitch(SnnetError):
    """Anchors, legs or boundaries that no stitch layer can join."""


class NoWeights(SnnetError):
    """Weights that are missing, unreadable or made for another network."""


class LostRanks(SnnetError):
    """Another process of the run is gone or silent."""


class MissingExtra(SnnetError):
    """Something that an extra installs is not there; the message names the extra."""


def reason_of(error: Exception) -> str:
    """The first line of another library's error, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A clause that names up to three known words like `word`, or nothing where none is near."""
    near = get_close_matches(word, list(known), n=3)
    return f'; did you mean {" or ".join(near)}?' if near else ''
