"""What a request asks for besides an answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .refusal import Refusal


@dataclass(frozen=True)
class Demand:
    """What a request asks for.

    Attributes:
        deadline_ms: milliseconds from arrival to answer.
        min_top1: lowest acceptable accuracy in percent; 0 accepts whatever the load allows.
        flops: most multiply-adds per image; None where any number is fine.
        stitch: the only stitch that may answer; None where the load decides.

    Raises:
        Refusal: a value is out of range, or both `flops` and `stitch` are given.
    """

    deadline_ms: float
    min_top1: float = 0.0
    flops: float | None = None
    stitch: int | None = None

    def __post_init__(self) -> None:
        if not (self.deadline_ms > 0 and math.isfinite(self.deadline_ms)):
            raise Refusal('invalid', f'deadline_ms is a positive number of milliseconds, not {self.deadline_ms:g}')
        if not 0 <= self.min_top1 <= 100:
            raise Refusal('invalid', f'min_top1 is a percentage from 0 to 100, not {self.min_top1:g}')
        if self.flops is not None and not (self.flops > 0 and math.isfinite(self.flops)):
            raise Refusal('invalid', f'flops is a positive number of multiply-adds, not {self.flops:g}')
        if self.flops is not None and self.stitch is not None:
            raise Refusal('invalid', 'a request names a stitch or a limit of flops, not both')
