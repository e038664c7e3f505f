"""Assemblies that have been built as networks, and the list of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .assembly import Assembly
from .naswot import CodeScore

RANKS = ('similarity', 'naswot', 'naswot_plain')
"""Scores to rank by. Plain NASWOT ranks mostly by the number of units; 'naswot' is normalized."""


@dataclass(frozen=True)
class Candidate:
    """An assembly that has been built.

    Attributes:
        assembly: its blocks and its score; the costs there are from tables.
        network: the network as text; its last leg is open if the head is that of its own network.
        flops: multiply-adds per image, measured on the network.
        params: number of parameters, measured on the network.
        codes: its NASWOT score, if asked for.
    """

    assembly: Assembly
    network: str
    flops: int
    params: int
    codes: CodeScore | None

    def row(self, rank: int) -> dict[str, Any]:
        """A line of assemblies.jsonl, for the candidate at a rank from 0."""
        row: dict[str, Any] = {
            'place': rank,
            'network': self.network,
            'blocks': [str(block) for block in self.assembly.blocks],
        }
        row.update(flops=self.flops, params=self.params, similarity=self.assembly.score)
        if self.codes is not None:
            row.update(naswot=self.codes.normalized, naswot_plain=self.codes.plain, units=self.codes.units)
        return row

    def ranked_by(self, rank: str) -> float:
        """The score that a list is ranked by, one of `RANKS`; more is better."""
        if rank == 'similarity':
            return self.assembly.score
        assert self.codes is not None
        return self.codes.plain if rank == 'naswot_plain' else self.codes.normalized


def format_candidates(candidates: Sequence[Candidate], rank: str) -> str:
    """The printed list: a header and one numbered line per candidate."""
    scored = candidates[0].codes is not None
    header = f'{"":>3} {"GFLOPs":>10} {"Mparams":>8} {"similar":>8} ' + (f'{"NASWOT":>8} ' if scored else '')
    lines = [f'{header} assembly']
    for i, found in enumerate(candidates):
        costs = f'{found.flops / 1e9:10.4g} {found.params / 1e6:8.4g} {found.assembly.score:8.4f} '
        score = f'{found.ranked_by(rank):8.1f} ' if scored else ''
        lines.append(f'{i:>3} {costs}{score} {found.network}')
    return '\n'.join(lines)
