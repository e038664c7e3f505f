"""The list of faults; each is a function that injects it once and says how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .lab import Lab

IDENTICAL = 'bit-identical end'
STOPPED = 'stopped with a sentence; bit-identical end after a restart'
REFUSED = 'refused with a sentence, nothing changed'


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: what is done.
        inject: does it once and checks what must hold; returns the outcome in words.
        often: its share of a long run, relative to others.
        lost: steps that may have to be repeated.
    """

    name: str
    inject: Callable[[Lab], str]
    often: int
    lost: int


KINDS: dict[str, Kind] = {}


def kind(name: str, often: int = 2, lost: int = 0) -> Callable[[Callable[[Lab], str]], Callable[[Lab], str]]:
    """Adds a function to the list of faults."""

    def add(inject: Callable[[Lab], str]) -> Callable[[Lab], str]:
        KINDS[name] = Kind(name, inject, often, lost)
        return inject

    return add
