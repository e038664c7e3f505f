"""The rules that list stitches: which blocks of two anchors a stitch layer joins, and in which order ids are given."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from ..anchors.anchor import Anchor
from ..anchors.boundary import Boundary
from ..errors import CannotStitch, SnnetError
from .stitch import Leg, Stitch

DIRECTIONS = ('fast_to_slow', 'slow_to_fast', 'two_way')


@dataclass(frozen=True)
class Join:
    """The front runs blocks 0..j of a stage, the end its blocks k..last; `layer` counts within the stage."""

    j: int
    k: int
    layer: int


def paired(depth: int, window: int = 2, step: int = 1) -> list[Join]:
    """Paired rule for equal depths: every (j, k) within a sliding window, which shares one stitch layer.

    A join belongs to the first window that holds it; a stage shorter than the window is one window.
    (SN-Net, section 3.2, "stitching as sliding windows".)
    """
    window = min(window, depth)
    joins: dict[tuple[int, int], Join] = {}
    for layer, first in enumerate(range(0, depth - window + 1, step)):
        for j in range(first, first + window):
            for k in range(first, first + window):
                joins.setdefault((j, k), Join(j, k, layer))
    return list(joins.values())


def unpaired(front_depth: int, end_depth: int, official: bool = False) -> list[Join]:
    """Unpaired rule for unequal depths: each block of the deeper anchor meets its nearest in the shallower one.

    Block d of the deeper anchor pairs with s = floor(d * shallower depth / deeper depth), kept where s < d. The joins
    of one shallow block share a stitch layer; the published implementation gives join d the layer of block d - 1.
    """
    shallow, deep = sorted((front_depth, end_depth))
    joins = []
    for d in range(deep):
        s = d * shallow // deep
        if s < d:
            layer = (d - 1) * shallow // deep if official else s
            joins.append(Join(s, d, layer) if end_depth == deep else Join(d, s, layer))
    return joins


def list_stitches(
    anchors: Sequence[Anchor],
    *,
    window: int = 2,
    step: int = 1,
    nearest: bool = True,
    direction: str = 'fast_to_slow',
    official: bool = False,
) -> tuple[Stitch, ...]:
    """All stitches of anchors given from small to large, in the published order of ids.

    Anchors come first; then, stage by stage, pair by pair, join by join, the stitches of neighbors. Without the
    nearest-anchor rule follow the pairs further apart (Ti-B) and the chains of three anchors (Ti-S-B). Two ways list
    all that from small to large, then from large to small with stitch layers of their own, then, without the
    nearest-anchor rule, the chains that leave an anchor for another and return to it (SN-Netv2).

    Args:
        anchors: from small to large, with distinct names; one alone makes one stitch, itself.
        window, step: width and advance of the paired rule's sliding window.
        nearest: stitch only neighbors in cost.
        direction: 'fast_to_slow' goes from the smaller anchor to the larger, 'slow_to_fast' the other way, 'two_way'
            is both.
        official: share the stitch layers of the unpaired rule as the published implementation does.

    Raises:
        SnnetError: an option out of range, or no anchors.
        CannotStitch: anchors of different class counts or image sizes, or neighbors without a common grid.
    """
    if window < 1 or step < 1:
        raise SnnetError(f'window and step are at least 1, but window={window} and step={step} were asked for')
    if direction not in DIRECTIONS:
        raise SnnetError(f"direction is one of {', '.join(DIRECTIONS)}, not '{direction}'")
    check_anchors(anchors)
    space = _Space(list(anchors), window, step, official)
    pairs = sorted(combinations(range(len(anchors)), 2), key=lambda pair: pair[1] - pair[0])
    near, apart = pairs[: len(anchors) - 1], pairs[len(anchors) - 1 :]
    triples = list(combinations(range(len(anchors)), 3))
    stitches = [Stitch((Leg(anchor.name),)) for anchor in anchors]
    for turn in {'fast_to_slow': (1,), 'slow_to_fast': (-1,), 'two_way': (1, -1)}[direction]:
        stitches += space.two_legs([pair[::turn] for pair in near])
        if not nearest:
            stitches += space.two_legs([pair[::turn] for pair in apart])
            stitches += space.three_legs([triple[::turn] for triple in triples])
    if direction == 'two_way' and not nearest:
        stitches += space.three_legs([chain for a, b in pairs for chain in ((a, b, a), (b, a, b))])
    return tuple(stitches)


def check_anchors(anchors: Sequence[Anchor]) -> None:
    """Refuses anchors that do not belong together.

    Raises:
        SnnetError: none, or two of one name.
        CannotStitch: they differ in number of classes or in image size, or one does not run on its image size.
    """
    if not anchors:
        raise SnnetError('a stitchable network needs at least one anchor, none given')
    for anchor in anchors:
        _ = anchor.boundaries  # runs the anchor once, and says so where it does not run on its image size
    names = [anchor.name for anchor in anchors]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SnnetError(f"two anchors are called '{twice}': give each its own name")
    headless = [anchor.name for anchor in anchors if anchor.num_classes == 0]
    if headless:
        raise CannotStitch(
            f'{", ".join(headless)} has no classifier (0 classes): give num_classes= (--num-classes) for a new one'
        )
    for what, values, remedy in (
        (
            'number of classes',
            [anchor.num_classes for anchor in anchors],
            'num_classes= (--num-classes) gives all of them new classifiers of one width',
        ),
        (
            'image size',
            ['x'.join(map(str, anchor.input_size)) for anchor in anchors],
            'img_size= (--img-size), or input_size= of as_anchor, gives all of them one',
        ),
    ):
        if len(set(values)) > 1:
            listed = ', '.join(f'{name} {value}' for name, value in zip(names, values, strict=True))
            raise CannotStitch(f'anchors differ in {what}: {listed}; {remedy}')


@dataclass(frozen=True)
class _Seam:
    """A stitch layer's place between two anchors: the front's stop, the end's start, the layer's index in the net."""

    front: int
    end: int
    stop: int
    start: int
    layer: int


class _Space:
    """Numbers the stitch layers while the stitches of a list of anchors, from small to large, are listed."""

    def __init__(self, anchors: list[Anchor], window: int, step: int, official: bool) -> None:
        self.anchors = anchors
        self.window, self.step, self.official = window, step, official
        self.seams: dict[tuple[int, ...], list[_Seam]] = {}
        self.layers: dict[tuple[Hashable, ...], int] = {}

    def two_legs(self, pairs: Sequence[tuple[int, ...]]) -> list[Stitch]:
        """Stitches of the pairs (front, end): stage by stage, pair by pair, join by join."""
        matched = {pair: matching_stages(self.anchors[pair[0]], self.anchors[pair[1]]) for pair in pairs}
        seams: list[_Seam] = []
        for turn in range(max((len(stages) for stages in matched.values()), default=0)):
            for pair in pairs:
                if turn < len(matched[pair]):
                    found = list(self._seams_of(pair, *matched[pair][turn]))
                    self.seams.setdefault(pair, []).extend(found)
                    seams += found
        for front, end in pairs:
            if abs(end - front) == 1 and not self.seams.get((front, end)):
                raise CannotStitch(_why_not(self.anchors[front], self.anchors[end]))
        return [self._stitch([seam]) for seam in seams]

    def three_legs(self, chains: Sequence[tuple[int, ...]]) -> list[Stitch]:
        """Stitches of the chains (front, middle, end) whose middle leg runs a module, and no leg one of another leg."""
        return [
            self._stitch([first, second])
            for a, b, c in chains
            for first in self.seams.get((a, b), ())
            for second in self.seams.get((b, c), ())
            if first.start < second.stop and (a != c or first.stop <= second.start)
        ]

    def _seams_of(self, pair: tuple[int, ...], front_stage: int, end_stage: int) -> Iterator[_Seam]:
        front, end = self.anchors[pair[0]], self.anchors[pair[1]]
        front_blocks, end_blocks = front.blocks()[front_stage], end.blocks()[end_stage]
        if len(front_blocks) == len(end_blocks):
            staged = len(front.blocks()) > 1 or len(end.blocks()) > 1
            joins = [x for x in paired(len(front_blocks), self.window, self.step) if x.j < x.k or not staged]
        else:
            joins = unpaired(len(front_blocks), len(end_blocks), self.official)
        for join in joins:
            stop, start = front_blocks[join.j] + 1, end_blocks[join.k]
            if front.boundaries[stop].joins(end.boundaries[start]):
                # blocks of one stage may differ in width, and a stitch layer has one shape
                key = (*pair, front_stage, join.layer, front.boundaries[stop], end.boundaries[start])
                layer = self.layers.setdefault(key, len(self.layers))
                yield _Seam(pair[0], pair[1], stop, start, layer)

    def _stitch(self, seams: Sequence[_Seam]) -> Stitch:
        anchors = [seams[0].front, *(seam.end for seam in seams)]
        starts = [None, *(seam.start for seam in seams)]
        stops = [*(seam.stop for seam in seams), None]
        legs = (Leg(self.anchors[a].name, *ends) for a, *ends in zip(anchors, starts, stops, strict=True))
        return Stitch(tuple(legs), tuple(seam.layer for seam in seams))


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
