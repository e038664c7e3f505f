"""The stitch layers that a list of stitches needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..anchors.anchor import Anchor
from ..anchors.boundary import Boundary
from ..errors import CannotStitch
from ..stitching.stitch import Leg, Stitch
from ..stitching.stitch_layer import StitchLayer


def build_layers(anchors: Mapping[str, Anchor], stitches: Sequence[Stitch]) -> list[StitchLayer]:
    """One stitch layer per index, checked against every stitch that uses it.

    Args:
        anchors: by name.
        stitches: say which layers there are, and what they join.

    Raises:
        CannotStitch: a leg runs an anchor or a position that is not there, boundaries do not join, or layers are not
            numbered without gaps.
    """
    ends: dict[int, tuple[Boundary, Boundary]] = {}
    for stitch in stitches:
        for leg in stitch.legs:
            _check_leg(leg, anchors)
        for layer, front, end in zip(stitch.layers, stitch.legs, stitch.legs[1:], strict=False):
            assert front.stop is not None  # a Stitch has positions beside its layers
            assert end.start is not None
            pair = anchors[front.anchor].boundaries[front.stop], anchors[end.anchor].boundaries[end.start]
            if not pair[0].joins(pair[1]):
                raise CannotStitch(f'{stitch}: the front gives {pair[0]}, the end takes {pair[1]}')
            if ends.setdefault(layer, pair) != pair:
                raise CannotStitch(f'{stitch}: stitch layer {layer} already joins other boundaries')
    if sorted(ends) != list(range(len(ends))):
        found = ', '.join(map(str, sorted(ends)[:10]))
        raise CannotStitch(f'stitch layers are numbered 0 to {len(ends) - 1} without gaps, but got {found}')
    return [StitchLayer(*ends[layer]) for layer in range(len(ends))]


def _check_leg(leg: Leg, anchors: Mapping[str, Anchor]) -> None:
    if leg.anchor not in anchors:
        raise CannotStitch(f"leg {leg}: there is no anchor '{leg.anchor}', only {', '.join(anchors)}")
    last = len(anchors[leg.anchor].line())
    start, stop = leg.start or 0, last if leg.stop is None else leg.stop
    if not 0 <= start <= stop <= last:
        raise CannotStitch(f'leg {leg}: positions of {leg.anchor} run from 0 to {last}')
