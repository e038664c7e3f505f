"""What adapting the stitches of a net achieved: which of them are worth having, before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ..stitching.stitch import Leg
from .agreement import Agreement


@dataclass(frozen=True)
class AdaptedStitch:
    """A stitch before and after, on images that it was not fitted to.

    Attributes:
        stitch: id.
        legs: the stitch as text.
        flops: multiply-adds per image.
        before, after: how close it comes to the largest anchor.
        mixed: what mixing two anchors at random at the same cost would give.
        kept: whether it now has parameters of its own; it stays as it was where they did not help.
        own: how many they are.
    """

    stitch: int
    legs: str
    flops: int
    before: Agreement
    after: Agreement
    mixed: Agreement
    kept: bool = False
    own: int = 0

    @property
    def direction(self) -> tuple[str, str]:
        """Names of the anchors of its first and its last leg."""
        first, *_, last = map(Leg.parse, self.legs.split('>'))
        return first.anchor, last.anchor

    @property
    def is_worth_having(self) -> bool:
        """Whether more accuracy is expected of it than of mixing anchors at the same cost."""
        return self.after.expected > self.mixed.expected

    def to_values(self) -> dict[str, Any]:
        """For a line of JSON."""
        return asdict(self)

    @classmethod
    def of_values(cls, values: dict[str, Any]) -> AdaptedStitch:
        """From a line of JSON."""
        pairs = {name: Agreement(**values[name]) for name in ('before', 'after', 'mixed')}
        return cls(**{**values, **pairs})


@dataclass(frozen=True)
class Adaptation:
    """What `snnet.adapt` did.

    Attributes:
        stitches: by id, those with a join that were looked at.
        images: how many images were fitted to, and how many judged.
        steps: updates of each stitch.
        own: number of parameters that stitches have for themselves now.
        held: number of parameters of the net, for comparison.
    """

    stitches: Sequence[AdaptedStitch]
    images: tuple[int, int]
    steps: int
    own: int
    held: int

    @property
    def worth_having(self) -> list[int]:
        """Ids of the stitches of which more accuracy is expected than of mixing anchors at the same cost."""
        return [row.stitch for row in self.stitches if row.is_worth_having]

    @property
    def gains(self) -> dict[tuple[str, str], float]:
        """How many points more than of mixing are expected, in the mean of the stitches of each direction.

        Stitches that cost more than every anchor are left out, because no mixture costs as much.
        """
        found: dict[tuple[str, str], list[float]] = {}
        for row in self.stitches:
            if not math.isnan(row.mixed.expected):
                found.setdefault(row.direction, []).append(row.after.expected - row.mixed.expected)
        return {direction: fmean(gains) for direction, gains in found.items()}

    def __str__(self) -> str:
        """A table, and a sentence on the whole."""
        lines = ['  id    GFLOPs  expected top-1: before  after  mixing   divergence: before  after  mixing  stitch']
        for row in sorted(self.stitches, key=lambda row: (row.flops, row.stitch)):
            right = f'{row.before.expected:>22.1f}  {row.after.expected:>5.1f}  {row.mixed.expected:>6.1f}'
            apart = f'{row.before.divergence:>20.3f}  {row.after.divergence:>5.3f}  {row.mixed.divergence:>6.3f}'
            mark = '' if row.is_worth_having else ' (not worth it)'
            lines.append(f'{row.stitch:>4}  {row.flops / 1e9:>8.4g}  {right}{apart}  {row.legs}{mark}')
        if len(gains := self.gains) > 1:
            lines += [
                f'from {first} to {last}: {gain:+.2f} points of expected top-1 over mixing, in the mean'
                for (first, last), gain in gains.items()
            ]
        count, kept = len(self.stitches), sum(row.kept for row in self.stitches)
        share = 100 * self.own / max(1, self.held)
        lines.append(
            f'{len(self.worth_having)} of {count} stitches are expected to be more accurate than mixing anchors at '
            f'random; {kept} have parameters of their own, {self.own / 1e6:.4g} M together ({share:.0f} % of the net)'
        )
        return '\n'.join(lines)
