"""Which stitches a published checkpoint has: read off its stitch layers, or refused where several spaces fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from ..anchors.anchor import Anchor
from ..errors import NoWeights
from ..stitching.pairing import sliding_windows
from ..stitching.space import SNNETV2, list_stitches, matching_stages
from ..stitching.stitch import Stitch
from .official_file import LayerKey, OfficialFile

_Pair = tuple[int, int]


@dataclass(frozen=True)
class OfficialSpace:
    """The stitches of a file.

    Attributes:
        stitches: by id.
        layers: index of the stitch layer in our net, by its key in the file.
    """

    stitches: tuple[Stitch, ...]
    layers: dict[LayerKey, int]


@dataclass(frozen=True)
class _Layers:
    """The stitch layers of one stage and pair in our net.

    Attributes:
        indices: those that serve a stitch.
        most: how many the published net may have; the last of them may serve no stitch.
        widths: channels that they take and give.
    """

    indices: list[int]
    most: int
    widths: tuple[int, int]


def is_snnetv2(file: OfficialFile, anchors: Sequence[Anchor]) -> bool:
    """Whether a file has stitch layers in both directions between two networks of one stage."""
    plain = len(anchors) == 2 and all(len(anchor.blocks()) == 1 for anchor in anchors)
    return plain and len(file.groups()) == 2


def snnetv2_space(file: OfficialFile, anchors: Sequence[Anchor]) -> OfficialSpace:
    """The space of SN-Netv2, with the layers of a file.

    Raises:
        NoWeights: other widths or fewer layers than the space has.
        CannotStitch: networks that SN-Netv2's rule does not fit.
    """
    stitches = list_stitches(anchors, direction=SNNETV2)
    ours = _layers_by_pair(anchors, stitches)
    held = list(file.groups().values())
    there, back = ours[0, (0, 1)], ours[0, (1, 0)]
    if file.widths(held[0][0]) != there.widths:  # where both networks are equally wide, small to large comes first
        held.reverse()
    layers: dict[LayerKey, int] = {}
    for keys, wanted in zip(held, (there, back), strict=True):
        if file.widths(keys[0]) != wanted.widths or len(keys) < len(wanted.indices):
            raise NoWeights(
                f'{file.path} does not have the space of SN-Netv2 for {_names(anchors)}: {len(wanted.indices)} stitch '
                f'layers of widths {wanted.widths} are needed, but it holds {len(keys)} of {file.widths(keys[0])}'
            )
        layers |= dict(zip(keys, wanted.indices, strict=False))
    return OfficialSpace(stitches, layers)


def window_space(
    file: OfficialFile,
    anchors: Sequence[Anchor],
    window: int | None = None,
    step: int | None = None,
    nearest: bool | None = None,
) -> OfficialSpace:
    """The space of SN-Net whose windows give the stitch layers of a file.

    Args:
        file: the file.
        anchors: from small to large.
        window, step: of the sliding window; None lets the number of stitch layers decide.
        nearest: the nearest-anchor rule; None lets the number of pairs decide.

    Raises:
        NoWeights: no space fits, or several do.
        CannotStitch: anchors that cannot be stitched.
    """
    pairs = len({pair for _, pair in file.groups()})
    if nearest is None:
        nearest = pairs <= max(1, len(anchors) - 1)
    fitting: dict[tuple[Stitch, ...], tuple[OfficialSpace, list[tuple[int, int]]]] = {}
    for choice in _choices(file, anchors, window, step):
        stitches = list_stitches(anchors, window=choice[0], step=choice[1], nearest=nearest, official=True)
        layers = _matched(file, _layers_by_pair(anchors, stitches, *choice), len(anchors))
        if layers is not None:
            space = OfficialSpace(stitches, layers)
            fitting.setdefault(stitches, (space, []))[1].append(choice)
    if len(fitting) == 1:
        return next(iter(fitting.values()))[0]
    held = f'{file.path} holds {len(file.layers)} stitch layers of {pairs} pairs of anchors'
    if not fitting:
        asked = [f'{name}={value}' for name, value in (('window', window), ('step', step)) if value is not None]
        example = list_stitches(anchors, window=window or 2, step=step or 1, nearest=nearest, official=True)
        layers_here = len({layer for stitch in example for layer in stitch.layers})
        raise NoWeights(
            f'{held}, which no space of {_names(anchors)} has with {" and ".join(asked) or "any window and step"}'
            f'{"" if nearest else " without the nearest-anchor rule"} (window {window or 2} and step {step or 1} give '
            f'{layers_here} that serve a stitch)'
        )
    listed = [
        f'window={choices[0][0]}, step={choices[0][1]} ({len(x.stitches)} stitches)' for x, choices in fitting.values()
    ]
    raise NoWeights(f'{held}, as several windows give: say which it was made with, {"; ".join(listed)}')


def _choices(
    file: OfficialFile, anchors: Sequence[Anchor], window: int | None, step: int | None
) -> Iterator[tuple[int, int]]:
    """Windows and steps that give as many stitch layers as the file has; the released ones first."""
    if window is not None and step is not None:
        yield window, step
        return
    deepest = max(len(blocks) for anchor in anchors for blocks in anchor.blocks())
    equal, staged = _equal_depths(anchors), len(anchors[0].blocks()) > 1
    groups = file.groups()
    every = product(
        range(1, deepest + 1) if window is None else [window], range(1, deepest + 1) if step is None else [step]
    )
    for choice in sorted(every, key=lambda choice: (choice != (2, 1), choice[0] != choice[1], choice)):
        spans = {stage: sliding_windows(depth, *choice) for stage, depth in equal.items()}
        if all(
            _least(found, staged) <= len(groups.get((stage, 0), ())) <= len(found) for stage, found in spans.items()
        ):
            yield choice


def _least(spans: Sequence[range], staged: bool) -> int:
    """Windows that serve a stitch: of staged networks, whose joins need j < k, a last one of one block does not."""
    return len(spans) - (staged and len(spans[-1]) == 1)


def _equal_depths(anchors: Sequence[Anchor]) -> dict[int, int]:
    """Depth of the stitched stages of the first two anchors that are equally deep, by their number among them."""
    stages = matching_stages(anchors[0], anchors[1]) if len(anchors) > 1 else []
    depths = [(len(anchors[0].blocks()[a]), len(anchors[1].blocks()[b])) for a, b in stages]
    return {number: a for number, (a, b) in enumerate(depths) if a == b}


def _layers_by_pair(
    anchors: Sequence[Anchor], stitches: Sequence[Stitch], window: int = 2, step: int = 1
) -> dict[tuple[int, _Pair], _Layers]:
    """Our stitch layers by stitched stage, counted from the first, and pair of anchors (front, end)."""
    index = {anchor.name: i for i, anchor in enumerate(anchors)}
    found: dict[tuple[int, _Pair], _Layers] = {}
    for stitch in (stitch for stitch in stitches if len(stitch.legs) == 2):
        front, end = stitch.legs
        assert front.stop is not None
        assert end.start is not None
        pair = index[front.anchor], index[end.anchor]
        stage, depth = _stage(anchors[pair[0]], front.stop - 1)
        other = _stage(anchors[pair[1]], end.start)[1]
        # unpaired: one layer per block of the shallower anchor
        most = len(sliding_windows(depth, window, step)) if depth == other else min(depth, other)
        widths = anchors[pair[0]].boundaries[front.stop].channels, anchors[pair[1]].boundaries[end.start].channels
        layers = found.setdefault((stage, pair), _Layers([], most, widths))
        if stitch.layers[0] not in layers.indices:
            layers.indices.append(stitch.layers[0])
    stages = sorted({stage for stage, _ in found})
    return {(stages.index(stage), pair): layers for (stage, pair), layers in found.items()}


def _stage(anchor: Anchor, module: int) -> tuple[int, int]:
    """The stage that holds a module of an anchor's line, and its number of blocks."""
    return next((i, len(span)) for i, span in enumerate(anchor.blocks()) if module in span)


def _matched(file: OfficialFile, ours: dict[tuple[int, _Pair], _Layers], anchors: int) -> dict[LayerKey, int] | None:
    """Index of our stitch layer by its key in the file; None where the file has other layers.

    Pairs of neighbors may come first in the file, or each anchor's pairs together: the widths of the layers tell.
    """
    groups = file.groups()
    every = list(combinations(range(anchors), 2))
    best: dict[LayerKey, int] | None = None
    most = -1
    for order in (sorted(every, key=lambda pair: pair[1] - pair[0]), every):
        named = {(stage, order[pair]): keys for (stage, pair), keys in groups.items() if pair < len(order)}
        if len(named) != len(groups) or named.keys() != ours.keys():
            continue
        if not all(len(ours[place].indices) <= len(keys) <= ours[place].most for place, keys in named.items()):
            continue
        fitting = sum(file.widths(keys[0]) == ours[place].widths for place, keys in named.items())
        if fitting > most:
            most = fitting
            best = {
                key: layer
                for place, keys in named.items()
                for key, layer in zip(keys, sorted(ours[place].indices), strict=False)
            }
    return best


def _names(anchors: Sequence[Anchor]) -> str:
    return ', '.join(anchor.name for anchor in anchors)
