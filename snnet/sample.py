"""What chooses the stitch to train next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .seeds import generator


@dataclass(frozen=True)
class UniformSampler:
    """Draws every stitch equally often (SN-Net, Algorithm 1, line 5).

    Attributes:
        stitches: ids to choose from.
        seed: of the run.
        per_rank: let every rank train a stitch of its own; otherwise all train the same one.
    """

    stitches: Sequence[int]
    seed: int
    per_rank: bool = False

    def __call__(self, step: int, rank: int = 0) -> int:
        """The stitch of a step; it depends on nothing but seed, step and (if asked for) rank."""
        place = (step, rank) if self.per_rank else (step,)
        draw = torch.randint(len(self.stitches), (), generator=generator(self.seed, 'stitch', *place))
        return self.stitches[int(draw)]
