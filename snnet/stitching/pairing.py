"""The rules that say which blocks of two stages a stitch layer joins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Join:
    """The front runs blocks 0..j of a stage, the end its blocks k..last; `layer` counts within the stage."""

    j: int
    k: int
    layer: int


def paired(depth: int, window: int = 2, step: int = 1, official: bool = False) -> list[Join]:
    """Paired rule for equal depths: every (j, k) within a sliding window, which shares one stitch layer.

    A join belongs to the first window that holds it. (SN-Net, section 3.2, "stitching as sliding windows".)

    Args:
        depth: number of blocks.
        window: blocks in a window.
        step: blocks from the first of one window to the first of the next. A step wider than the window would leave
            out the blocks between two windows, so it is shortened to the window unless `official` is set.
        official: keep such a step, as the published implementation does.
    """
    joins: dict[tuple[int, int], Join] = {}
    for layer, blocks in enumerate(sliding_windows(depth, window, step if official else min(step, window))):
        for j in blocks:
            for k in blocks:
                joins.setdefault((j, k), Join(j, k, layer))
    return list(joins.values())


def sliding_windows(depth: int, window: int, step: int) -> list[range]:
    """The blocks in each window: they begin at 0, step, 2 step, ... until one reaches the last block.

    The last window is short where fewer blocks are left.
    """
    found: list[range] = []
    for first in range(0, depth, step):
        if found and found[-1].stop == depth:
            break
        found.append(range(first, min(first + window, depth)))
    return found


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


def depth_aligned(small_depth: int, ratio: int) -> tuple[list[Join], list[Join]]:
    """SN-Netv2's rule for two networks of depths d and r d: joins positions of equal relative depth.

    Args:
        small_depth: d, blocks of the smaller network.
        ratio: r.

    Returns:
        The joins from the small network to the large one, (i, r (i + 1)), and those from the large to the small one,
        (r (i + 1) - 1, i + 1), for i from 0 to d - 2.
    """
    positions = range(small_depth - 1)
    there = [Join(i, ratio * (i + 1), i) for i in positions]
    back = [Join(ratio * (i + 1) - 1, i + 1, i) for i in positions]
    return there, back
