"""An assembly: one block of the zoo per stage, with its costs and its score."""

from __future__ import annotations

from dataclasses import dataclass

from ..stitching.stitch import Leg, Stitch


@dataclass(frozen=True)
class Assembly:
    """A network made of blocks of a zoo.

    Attributes:
        blocks: one per stage, with the positions at which it starts and stops.
        flops: multiply-adds per image.
        params: number of parameters.
        score: similarity of the two boundaries that meet at a join, averaged over the joins; blocks that follow each
            other in their own network count as 1.
    """

    blocks: tuple[Leg, ...]
    flops: int
    params: int
    score: float

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The blocks as legs from the image to the logits; blocks that follow each other in a network are one leg."""
        legs = [self.blocks[0]]
        for block in self.blocks[1:]:
            if block.anchor == legs[-1].anchor and block.start == legs[-1].stop:
                legs[-1] = Leg(block.anchor, legs[-1].start, block.stop)
            else:
                legs.append(block)
        legs[0] = Leg(legs[0].anchor, None, legs[0].stop)
        legs[-1] = Leg(legs[-1].anchor, legs[-1].start, None)
        return tuple(legs)

    @property
    def stitch(self) -> Stitch:
        """The assembly as the only stitch of a net, with a separate stitch layer at each join."""
        return Stitch(self.legs, tuple(range(len(self.legs) - 1)))

    def __str__(self) -> str:
        return ' > '.join(map(str, self.legs))
