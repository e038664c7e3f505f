"""Corrects profiled times by measured ones: a common factor, a factor per choice, and a spread. No torch needed."""

from __future__ import annotations

import math
from typing import NamedTuple

from .stitch_choices import STEP

MOST_FACTOR = 4.0
"""Largest correction in either direction; larger ones are clipped."""
_OUTLIER = math.log(2)
"""Log-deviations of single batches are clipped to this."""
_COMMON, _OWN = 0.1, 0.05
"""Learning rates of the common factor and of the factor of one choice."""
_EXACT = 1e-6
"""Log-deviations below this are clock noise."""


class Timing(NamedTuple):
    """Corrections of the table times, as logarithms.

    Attributes:
        common: correction of all choices.
        own: additional correction of each choice.
        steps: `own` as it is applied, in whole steps (see `Choices.corrected`).
        variance: mean square of the remaining deviations.
    """

    common: float
    own: tuple[float, ...]
    steps: tuple[int, ...]
    variance: float

    @classmethod
    def expected(cls, count: int, spread: float) -> Timing:
        """Returns the correction before any measurement: the tables hold, with their spread."""
        return cls(0.0, (0.0,) * count, (0,) * count, spread**2)

    @property
    def factor(self) -> float:
        """Factor by which every time is multiplied."""
        return math.exp(self.common)

    def margin(self, deviations: float) -> float:
        """Returns the factor for a batch that takes this many standard deviations longer than its median."""
        return math.exp(deviations * math.sqrt(self.variance))

    def learned(self, choice: int, measured: float, expected: float) -> Timing:
        """Returns the correction after a batch took `measured` seconds instead of the planned `expected` ones.

        A single measurement moves each factor by a few percent at most.
        """
        if not (measured > 0 and expected > 0):
            return self
        surprise = math.log(measured / expected)
        if abs(surprise) < _EXACT and self.variance == 0:
            return self
        surprise = max(-_OUTLIER, min(_OUTLIER, surprise))
        bound = math.log(MOST_FACTOR)
        common = max(-bound, min(bound, self.common + _COMMON * surprise))
        mine = max(-bound, min(bound, self.own[choice] + _OWN * surprise))
        own = (*self.own[:choice], mine, *self.own[choice + 1 :])
        steps = self.steps
        if abs(mine / STEP - steps[choice]) > 1:  # only if more than a step off, to avoid oscillation
            steps = (*steps[:choice], round(mine / STEP), *steps[choice + 1 :])
        variance = self.variance + _COMMON * (surprise**2 - self.variance)
        return Timing(common, own, steps, variance)
