"""Assemblies that were built, and the list of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .assemble import Assembly
from .naswot import CodeScore

RANKS = ('similarity', 'naswot', 'naswot_plain')
"""What assemblies are ranked by. Plain NASWOT mostly ranks by the number of units; 'naswot' is normalized."""


@dataclass(frozen=True)
class Candidate:
    """An assembly that was built.

    Attributes:
        assembly: its blocks and its score; the costs there are from tables.
        network: what was built, in print; its last leg is open where the head is its own.
        flops, params: measured on the network.
        codes: its NASWOT, where it was asked for.
    """

    assembly: Assembly
    network: str
    flops: int
    params: int
    codes: CodeScore | None

    def row(self, place: int) -> dict[str, Any]:
        """A line of assemblies.jsonl."""
        found = self.assembly
        row: dict[str, Any] = {
            'place': place,
            'network': self.network,
            'blocks': [str(block) for block in found.blocks],
        }
        row.update(flops=self.flops, params=self.params, similarity=found.score)
        if self.codes is not None:
            row.update(naswot=self.codes.normalized, naswot_plain=self.codes.plain, units=self.codes.units)
        return row

    def ranked_by(self, rank: str) -> float:
        """The score that a list is ranked by, one of `RANKS`; more is better."""
        if rank == 'similarity':
            return self.assembly.score
        assert self.codes is not None
        return self.codes.plain if rank == 'naswot_plain' else self.codes.normalized

    def line(self, rank: str) -> str:
        """A line of the printed list."""
        score = '' if self.codes is None else f'{self.ranked_by(rank):8.1f} '
        return f'{self.flops / 1e9:10.4g} {self.params / 1e6:8.4g} {self.assembly.score:8.4f} {score} {self.network}'


def table(candidates: Sequence[Candidate], rank: str) -> str:
    """The list, in print."""
    codes = '' if candidates[0].codes is None else f'{"NASWOT":>8} '
    head = f'{"GFLOPs":>10} {"Mparams":>8} {"similar":>8} {codes} assembly'
    return '\n'.join([head, *(candidate.line(rank) for candidate in candidates)])
