"""The stitches of a net: which sub-networks there are, and in which order they get their ids."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from ..anchors.anchor import Anchor
from ..anchors.boundary import Boundary
from ..errors import CannotStitch, SnnetError
from ..utils.whole_number import whole_number
from .check_anchors import check_anchors
from .pairing import depth_aligned, paired, unpaired
from .stitch import Leg, Stitch

_log = logging.getLogger(__name__)
_TURNS = {'fast_to_slow': (1,), 'slow_to_fast': (-1,), 'two_way': (1, -1)}
SNNETV2 = 'snnetv2'
DIRECTIONS = (*_TURNS, SNNETV2)


def list_stitches(
    anchors: Sequence[Anchor],
    *,
    window: int = 2,
    step: int = 1,
    nearest: bool = True,
    direction: str = 'fast_to_slow',
    stage_ends: bool = False,
    official: bool = False,
) -> tuple[Stitch, ...]:
    """All stitches of anchors given from small to large, in the published order of ids.

    Anchors come first, then the stitches of neighbors: stage by stage, pair by pair, join by join. Without the
    nearest-anchor rule, pairs further apart (Ti-B) and chains of three anchors (Ti-S-B) follow.

    'two_way' lists all of these from small to large, then from large to small with separate stitch layers. Without the
    nearest-anchor rule, chains that leave an anchor for another one and return to it come last.

    'snnetv2' is the space of SN-Netv2, which follows another rule (see `snnetv2_stitches`) and ignores window, step,
    nearest and stage_ends.

    Args:
        anchors: from small to large, with distinct names; a single anchor makes one stitch, itself.
        window: blocks in the paired rule's sliding window.
        step: blocks that it advances by; at most the window, because blocks between two windows would be left out.
        nearest: stitch only neighbors in cost.
        direction: 'fast_to_slow' goes from the smaller anchor to the larger, 'slow_to_fast' the other way, 'two_way'
            both ways; 'snnetv2' for the space of SN-Netv2.
        stage_ends: also join anchors where a stage of each ends (`matching_stage_ends`); the rules join blocks within
            a stage only. These stitches follow the others of a direction, and share no stitch layer.
        official: follow the published implementation in how the unpaired rule shares stitch layers, and in steps wider
            than the window.

    Raises:
        SnnetError: an option out of range, or no anchors.
        CannotStitch: anchors of different class counts or image sizes, neighbors without a common grid, or networks
            that SN-Netv2's rule does not fit.
    """
    window, step = whole_number('window', window, least=1), whole_number('step', step, least=1)
    _check_direction(direction)
    check_anchors(anchors)
    if direction == SNNETV2:
        return snnetv2_stitches(anchors)
    if step > window and not official:
        _log.warning(
            'step %d would leave out the blocks between two windows of %d: windows advance by %d', step, window, window
        )
    space = _Space(list(anchors), window, step, stage_ends, official)
    pairs = sorted(combinations(range(len(anchors)), 2), key=lambda pair: pair[1] - pair[0])
    near, apart = pairs[: len(anchors) - 1], pairs[len(anchors) - 1 :]
    triples = list(combinations(range(len(anchors)), 3))
    stitches = [Stitch((Leg(anchor.name),)) for anchor in anchors]
    for turn in _TURNS[direction]:
        stitches += space.two_legs([pair[::turn] for pair in near])
        if not nearest:
            stitches += space.two_legs([pair[::turn] for pair in apart])
            stitches += space.three_legs([triple[::turn] for triple in triples])
    if direction == 'two_way' and not nearest:
        stitches += space.three_legs([chain for a, b in pairs for chain in ((a, b, a), (b, a, b))])
    return tuple(stitches)


def _check_direction(direction: str) -> None:
    if direction not in DIRECTIONS:
        raise SnnetError(f"direction is one of {', '.join(DIRECTIONS)}, not '{direction}'")


def snnetv2_stitches(anchors: Sequence[Anchor]) -> tuple[Stitch, ...]:
    """SN-Netv2's space for two networks of d and r d blocks: d = 12 has 134 stitches, for DeiT3-S/L (r = 2) and others.

    After the anchors come, in this order, with blocks counted from 0 and i and j from 0 to d - 2:

    - small 0..i > large r (i + 1)..last
    - large 0..r (i + 1) - 1 > small i + 1..last
    - large 0..r (i + 1) - 1 > small i + 1..j > large r (j + 1)..last, for i < j
    - small 0..i > large r (i + 1)..r (j + 1) - 1 > small j + 1..last, for i < j

    Each direction has one stitch layer per position.

    Args:
        anchors: the small network and the large one, each with a single stage.

    Raises:
        CannotStitch: other networks, or networks with different grids.
    """
    spans = [anchor.blocks() for anchor in anchors]
    depths = [len(span[0]) if len(span) == 1 else 0 for span in spans]
    if len(anchors) != 2 or not all(depths) or depths[1] % depths[0]:
        listed = ', '.join(f'{a.name} ({_stages_in_words(span)})' for a, span in zip(anchors, spans, strict=True))
        raise CannotStitch(
            f"direction '{SNNETV2}' needs two networks of one stage each, the larger one as deep as the smaller one or "
            f'a multiple of it, but got {listed}'
        )
    small, large = (span[0] for span in spans)
    there, back = depth_aligned(depths[0], depths[1] // depths[0])
    up = [_PlacedJoin(0, 1, small[x.j] + 1, large[x.k], x.layer) for x in there]
    down = [_PlacedJoin(1, 0, large[x.j] + 1, small[x.k], len(there) + x.layer) for x in back]
    for join in (*up, *down):
        front, end = anchors[join.front].boundaries[join.stop], anchors[join.end].boundaries[join.start]
        if not front.joins(end):
            raise CannotStitch(_why_not(anchors[join.front], anchors[join.end]))
    chains = [[join] for join in (*up, *down)]
    chains += [[leave, back] for leave, back in _returning(down, up)]
    chains += [[leave, back] for leave, back in _returning(up, down)]
    return (*(Stitch((Leg(anchor.name),)) for anchor in anchors), *(_stitch_of(anchors, chain) for chain in chains))


@dataclass(frozen=True)
class _PlacedJoin:
    """A join of two anchors of the net.

    Attributes:
        front, end: indices of the anchors.
        stop: position at which the front stops.
        start: position at which the end starts.
        layer: index of the stitch layer in the net.
    """

    front: int
    end: int
    stop: int
    start: int
    layer: int


def _stitch_of(anchors: Sequence[Anchor], joins: Sequence[_PlacedJoin]) -> Stitch:
    """The stitch that runs from join to join."""
    order = [joins[0].front, *(join.end for join in joins)]
    starts = [None, *(join.start for join in joins)]
    stops = [*(join.stop for join in joins), None]
    legs = (Leg(anchors[i].name, *ends) for i, *ends in zip(order, starts, stops, strict=True))
    return Stitch(tuple(legs), tuple(join.layer for join in joins))


def _returning(leave: Sequence[_PlacedJoin], back: Sequence[_PlacedJoin]) -> Iterator[tuple[_PlacedJoin, _PlacedJoin]]:
    """Joins that leave a network at one position and return to it at a later one."""
    for i, first in enumerate(leave):
        for second in back[i + 1 :]:
            yield first, second


def _stages_in_words(span: Sequence[Sequence[int]]) -> str:
    return f'{len(span[0])} blocks' if len(span) == 1 else f'{len(span)} stages'


class _Space:
    """Numbers the stitch layers while the stitches of a list of anchors, from small to large, are listed."""

    def __init__(self, anchors: list[Anchor], window: int, step: int, stage_ends: bool, official: bool) -> None:
        self.anchors = anchors
        self.window, self.step, self.stage_ends, self.official = window, step, stage_ends, official
        self.joins: dict[tuple[int, ...], list[_PlacedJoin]] = {}
        self.layers: dict[tuple[Hashable, ...], int] = {}

    def two_legs(self, pairs: Sequence[tuple[int, ...]]) -> list[Stitch]:
        """Stitches of the pairs (front, end): stage by stage, pair by pair, join by join; then those of stage ends."""
        matched = {pair: matching_stages(self.anchors[pair[0]], self.anchors[pair[1]]) for pair in pairs}
        placed: list[_PlacedJoin] = []
        for turn in range(max((len(stages) for stages in matched.values()), default=0)):
            for pair in pairs:
                if turn < len(matched[pair]):
                    found = list(self._joins_of(pair, *matched[pair][turn]))
                    self.joins.setdefault(pair, []).extend(found)
                    placed += found
        for pair in pairs if self.stage_ends else ():
            found = list(self._stage_ends_of(pair))
            self.joins.setdefault(pair, []).extend(found)
            placed += found
        for front, end in pairs:
            if abs(end - front) == 1 and not self.joins.get((front, end)):
                raise CannotStitch(_why_not(self.anchors[front], self.anchors[end]))
        return [_stitch_of(self.anchors, [join]) for join in placed]

    def three_legs(self, chains: Sequence[tuple[int, ...]]) -> list[Stitch]:
        """Stitches of the chains (front, middle, end) whose middle leg runs a module and whose legs share none."""
        return [
            _stitch_of(self.anchors, [first, second])
            for a, b, c in chains
            for first in self.joins.get((a, b), ())
            for second in self.joins.get((b, c), ())
            if first.start < second.stop and (a != c or first.stop <= second.start)
        ]

    def _joins_of(self, pair: tuple[int, ...], front_stage: int, end_stage: int) -> Iterator[_PlacedJoin]:
        front, end = self.anchors[pair[0]], self.anchors[pair[1]]
        front_blocks, end_blocks = front.blocks()[front_stage], end.blocks()[end_stage]
        if len(front_blocks) == len(end_blocks):
            staged = len(front.blocks()) > 1 or len(end.blocks()) > 1
            rule = paired(len(front_blocks), self.window, self.step, self.official)
            joins = [x for x in rule if x.j < x.k or not staged]
        else:
            joins = unpaired(len(front_blocks), len(end_blocks), self.official)
        for join in joins:
            stop, start = front_blocks[join.j] + 1, end_blocks[join.k]
            if front.boundaries[stop].joins(end.boundaries[start]):
                # blocks of one stage may differ in width, and a stitch layer has one shape
                key = (*pair, front_stage, join.layer, front.boundaries[stop], end.boundaries[start])
                layer = self.layers.setdefault(key, len(self.layers))
                yield _PlacedJoin(pair[0], pair[1], stop, start, layer)

    def _stage_ends_of(self, pair: tuple[int, ...]) -> Iterator[_PlacedJoin]:
        front, end = self.anchors[pair[0]], self.anchors[pair[1]]
        for stop, start in matching_stage_ends(front, end):
            layer = self.layers.setdefault((*pair, 'stage end', stop, start), len(self.layers))
            yield _PlacedJoin(pair[0], pair[1], stop, start, layer)


def matching_stages(front: Anchor, end: Anchor) -> list[tuple[int, int]]:
    """Pairs of stitched stages that run on the same grid with the same prefix, in order."""
    matches: list[tuple[int, int]] = []
    free = list(end.stitch_stages())
    for stage in front.stitch_stages():
        inside = _inside(front, stage)
        match = next((other for other in free if inside.joins(_inside(end, other))), None)
        if match is not None:
            matches.append((stage, match))
            free = [other for other in free if other > match]
    return matches


def matching_stage_ends(front: Anchor, end: Anchor) -> list[tuple[int, int]]:
    """Positions (stop, start) at which a stage of each ends on the same grid with the same prefix, in order.

    The last stage of a network does not count: only the head is behind it.
    """
    stops, starts = ([span[-1] + 1 for span in anchor.blocks()[:-1]] for anchor in (front, end))
    return [(a, b) for a in stops for b in starts if front.boundaries[a].joins(end.boundaries[b])]


def _inside(anchor: Anchor, stage: int) -> Boundary:
    return anchor.boundaries[anchor.blocks()[stage][0] + 1]


def _why_not(front: Anchor, end: Anchor) -> str:
    def grids(anchor: Anchor) -> str:
        return '; '.join(str(_inside(anchor, stage)) for stage in anchor.stitch_stages())

    def depths(anchor: Anchor, stages: Sequence[int]) -> str:
        return ' + '.join(str(len(anchor.blocks()[stage])) for stage in stages)

    matched = matching_stages(front, end)
    if matched:
        fronts, ends = zip(*matched, strict=True)
        return (
            f'{front.name} and {end.name} share grids but are too shallow there ({depths(front, fronts)} and '
            f'{depths(end, ends)} blocks): a stitch runs a block of a stage and then a later one of the other anchor; '
            f'a stage within which several tensors run side by side counts as one block'
        )
    pairs = [(_inside(front, a), _inside(end, b)) for a in front.stitch_stages() for b in end.stitch_stages()]
    same_grid = any(a.grid == b.grid for a, b in pairs)
    detail = ': only their numbers of prefix tokens differ, and a stitch layer maps every token' if same_grid else ''
    return (
        f'no stage of {front.name} ({grids(front)}) has the grid and the prefix tokens of one of {end.name} '
        f'({grids(end)}), so no stitch layer can join them{detail}'
    )
