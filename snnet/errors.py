"""Errors that a user can act on: one sentence each, which the scripts show without a traceback (exit code 2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any


class SnnetError(ValueError):
    """Bad input. The message says what was asked, what is possible and by how much it missed."""


class InvalidBudget(SnnetError):
    """A budget that is not a positive finite number, or no budget at all."""


class BudgetInfeasible(SnnetError):
    """No stitch fits the budget.

    Attributes:
        smallest: the smallest feasible value of each limit that was asked for, as a dict such as `{'flops': 1.3e9}`.
            With several limits it holds the costs of the stitch that misses them least.
    """

    def __init__(self, message: str, smallest: dict[str, float]) -> None:
        super().__init__(message)
        self.smallest = smallest

    def __reduce__(self) -> tuple[Any, ...]:  # without it, the error could not be sent to another process
        return type(self), (str(self), self.smallest)


class ForeignTable(SnnetError):
    """A latency table that was made with other weights or in another setup, or no table at all."""


class UnknownStitch(SnnetError, IndexError):
    """A stitch id that is not an integer from 0 to the number of stitches minus one."""


class CannotStitch(SnnetError):
    """Anchors, legs or boundaries that no stitch layer can join."""


class NoWeights(SnnetError):
    """Weights that are missing, unreadable or made for another network."""


class NoClassifier(NoWeights):
    """Weights without a classifier where one is needed."""


class LostRanks(SnnetError):
    """Another process of the run is gone or silent."""


class MissingExtra(SnnetError):
    """A package that an extra installs is missing. The message says how to install it.

    Args:
        purpose: what needs the packages, such as 'drawing'.
        packages: the missing packages.
        extra: the extra of setup.cfg that installs them.
        error: of the import. The message quotes it where it is not one of the packages that is missing, because they
            are then installed, but broken.
    """

    def __init__(self, purpose: str, packages: Sequence[str], extra: str, error: ImportError | None = None) -> None:
        plain = {package.partition('[')[0].replace('-', '_') for package in packages}
        broken = error is not None and error.name not in plain
        super().__init__(
            f"{purpose} needs {' and '.join(packages)}: pip install -e '.[{extra}]' in the folder of the clone, "
            f'or pip install {" ".join(packages)}{f" (now: {reason_of(error)})" if error and broken else ""}'
        )
        self._arguments = purpose, packages, extra, error

    def __reduce__(self) -> tuple[Any, ...]:  # without it, the error could not be sent to another process
        return type(self), self._arguments


def reason_of(error: Exception) -> str:
    """The first line of another library's error, cut short where it is long, or its type if it has no message."""
    lines = str(error).strip().splitlines()
    return excerpt(lines[0]) if lines else type(error).__name__


def excerpt(text: str, longest: int = 300) -> str:
    """A text as one line, cut short where it is long, for messages that quote what a stranger wrote."""
    line = ' '.join(text.split())
    return line if len(line) <= longest else f'{line[: longest - 3]}...'


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A clause that names up to three known words like `word`, or nothing if none is similar."""
    near = get_close_matches(word, list(dict.fromkeys(known)), n=3)
    return f'; did you mean {" or ".join(near)}?' if near else ''


def in_words(error: SnnetError | OSError) -> str:
    """What a script shows of an error: its sentence, or the path and the reason where the system refused something.

    Args:
        error: an `OSError` is a disk that is full, a folder without write permission, and the like.
    """
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"'{error.filename}' cannot be used: {error.strerror}"
    return str(error)
