"""Correction of profiled times by what is measured: a common factor, one a choice, and a spread. No torch here."""

from __future__ import annotations

import math
from typing import NamedTuple

from .stitch_choices import STEP

_FACTOR = 4.0
"""The tables may be wrong by this factor in either direction; more is taken for this."""
_OUTLIER = math.log(2)
"""A batch that differs more than this from what was expected counts as if it differed by this."""
_COMMON, _OWN = 0.1, 0.05
"""Shares by which the common factor, and that of one choice, follow a measurement."""
_EXACT = 1e-6
"""Differences below this are those of a clock."""


class Timing(NamedTuple):
    """How the times of the tables are to be corrected, as logarithms.

    Attributes:
        common: of all.
        own: of each choice besides.
        steps: `own` as it is applied, in whole steps (see `Choices.corrected`).
        variance: mean square of what remains.
    """

    common: float
    own: tuple[float, ...]
    steps: tuple[int, ...]
    variance: float

    @classmethod
    def expected(cls, count: int, spread: float) -> Timing:
        """Before anything was measured: the tables hold, with their spread."""
        return cls(0.0, (0.0,) * count, (0,) * count, spread**2)

    @property
    def factor(self) -> float:
        """By which every time is multiplied."""
        return math.exp(self.common)

    def margin(self, deviations: float) -> float:
        """Factor for a batch that takes longer than its median by so many standard deviations."""
        return math.exp(deviations * math.sqrt(self.variance))

    def learned(self, choice: int, measured: float, expected: float) -> Timing:
        """After a batch of a choice took `measured` seconds rather than `expected`, corrected, ones.

        A single measurement moves each factor by a few percent only, however far off it is.
        """
        if not (measured > 0 and expected > 0):
            return self
        surprise = math.log(measured / expected)
        if abs(surprise) < _EXACT and self.variance == 0:
            return self
        surprise = max(-_OUTLIER, min(_OUTLIER, surprise))
        bound = math.log(_FACTOR)
        common = max(-bound, min(bound, self.common + _COMMON * surprise))
        mine = max(-bound, min(bound, self.own[choice] + _OWN * surprise))
        own = (*self.own[:choice], mine, *self.own[choice + 1 :])
        steps = self.steps
        if abs(mine / STEP - steps[choice]) > 1:  # more than a step off, lest it goes to and fro
            steps = (*steps[:choice], round(mine / STEP), *steps[choice + 1 :])
        variance = self.variance + _COMMON * (surprise**2 - self.variance)
        return Timing(common, own, steps, variance)
