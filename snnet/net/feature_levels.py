"""Levels of intermediate features, the same for all stitches with one end: fronts are mapped to the end's widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..anchors.boundary import Boundary
from ..stitching.stitch import Stitch

if TYPE_CHECKING:
    from ..anchors.anchor import Anchor


@dataclass(frozen=True)
class Tap:
    """Where the features of a level are taken.

    Attributes:
        leg: index of the leg that is tapped.
        position: in the line of that leg's anchor.
        layers: stitch layers that map the features there to the width of the end, in order.
    """

    leg: int
    position: int
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Level:
    """A level of features.

    Attributes:
        position: in the line of the end's anchor.
        boundary: what flows there, and what every stitch with this end gives.
        tap: where a stitch takes it.
    """

    position: int
    boundary: Boundary
    tap: Tap


class FeatureLevels:
    """Finds the levels of the stitches of a net.

    A level is a stage of the end anchor, or a block where there is only one stage. What the end leg computes is taken
    as it is. Before that the front's features stand in: they are taken where a join of the two anchors lies nearest to
    the level, and mapped by the stitch layer of that join. Levels that this does not give for all stitches with the
    same end are left out, such as the first stage of ResNets, which has no joins.

    Args:
        stitches: of the net.
        anchors: by name.
    """

    def __init__(self, stitches: Sequence[Stitch], anchors: Mapping[str, Anchor]) -> None:
        self.stitches = stitches
        self.boundaries = {name: anchor.boundaries for name, anchor in anchors.items()}
        self.ends = {name: _ends(anchor.blocks()) for name, anchor in anchors.items()}
        self.joins: dict[tuple[str, str], set[tuple[int, int, int]]] = {}
        for stitch in stitches:
            for front, end, layer in zip(stitch.legs, stitch.legs[1:], stitch.layers, strict=False):
                assert front.stop is not None
                assert end.start is not None
                self.joins.setdefault((front.anchor, end.anchor), set()).add((front.stop, end.start, layer))

    def of(self, stitch: Stitch) -> list[Level]:
        """The levels of a stitch, from the image to the logits."""
        end = stitch.legs[-1].anchor
        same_end = [other for other in self.stitches if other.legs[-1].anchor == end]
        found = []
        for position in self.ends[end]:
            tap = self.tap(stitch, position)
            if tap is not None and all(self.tap(other, position) for other in same_end):
                found.append(Level(position, self.boundaries[end][position], tap))
        return found

    def tap(self, stitch: Stitch, position: int) -> Tap | None:
        """Where a stitch takes the features of a position of its end; None where no stitch layer leads there."""
        last = len(stitch.legs) - 1
        if position >= (stitch.legs[last].start or 0):
            return Tap(last, position)
        routes = [(self._route(stitch, leg, position), leg) for leg in range(last)]
        found = [(route[0], -leg, Tap(leg, route[1], route[2])) for route, leg in routes if route is not None]
        return min(found, key=lambda entry: entry[:2])[2] if found else None

    def _route(self, stitch: Stitch, leg: int, position: int) -> tuple[int, int, tuple[int, ...]] | None:
        """How far off the features of a leg are, the position where they are taken, and what maps them."""
        front, end = stitch.legs[leg], stitch.legs[leg + 1]
        distance, target, layers = 0, position, tuple[int, ...]()
        if leg + 2 < len(stitch.legs):
            onward = self._route(stitch, leg + 1, position)
            if onward is None:
                return None
            distance, target, layers = onward
        there = self.boundaries[end.anchor][target]
        found = [
            (abs(entry - target), entry, at, layer)
            for at, entry, layer in self.joins[front.anchor, end.anchor]
            if (front.start or 0) <= at <= (front.stop or 0) and self.boundaries[end.anchor][entry] == there
        ]
        if not found:
            return None
        off, _, at, layer = min(found)
        return distance + off, at, (layer, *layers)


def _ends(blocks: Sequence[range]) -> list[int]:
    """Positions of the levels of a line: the ends of its stages, or of its blocks where it has one stage."""
    if len(blocks) == 1:
        return [block + 1 for block in blocks[0]]
    return [stage.stop for stage in blocks if len(stage)]
