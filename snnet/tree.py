"""Many stitches on the same images: the parts that they share run once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from .net import StitchableNet


def all_logits(net: StitchableNet, images: Tensor, stitches: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Logits (N, classes) of many stitches, each bit for bit what `net(images, stitch=id)` gives.

    The stitches form a tree of parts (stem, modules, stitch layers, head); each branch runs once, so that stitches
    share the front they have in common. Memory holds the features along one branch.

    Args:
        net: in eval mode.
        images: (N, C, H, W).
        stitches: ids.

    Yields:
        Pairs of id and logits, in the order of the tree.
    """
    root = _Node()
    for stitch in stitches:
        node = root
        for part, run in _parts(net, stitch):
            node = node.then.setdefault(part, _Node(run))
        node.stitches.append(stitch)
    yield from root.visit(images)


class _Node:
    """A part of the tree, with the parts that follow it and the stitches that end with it."""

    def __init__(self, run: Callable[[Tensor], Tensor] | None = None) -> None:
        self.run = run
        self.then: dict[tuple[Any, ...], _Node] = {}
        self.stitches: list[int] = []

    def visit(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Runs the part and everything behind it."""
        if self.run is not None:
            x = self.run(x)
        for stitch in self.stitches:
            yield stitch, x
        for node in self.then.values():
            yield from node.visit(x)


def _parts(net: StitchableNet, stitch: int) -> Iterator[tuple[tuple[Any, ...], Callable[[Tensor], Tensor]]]:
    """Name and function of every part of a stitch, in order; equal names mean equal functions."""
    chosen = net.stitches[stitch]
    for i, leg in enumerate(chosen.legs):
        anchor = net.anchor(leg.anchor)
        if i:
            yield ('layer', chosen.layers[i - 1]), net.layer(chosen.layers[i - 1])
        else:
            yield ('stem', leg.anchor), anchor.stem
        line = anchor.line()
        start, stop, _ = slice(leg.start, leg.stop).indices(len(line))
        for position in range(start, stop):
            yield ('module', leg.anchor, position), line[position]
        if leg.stop is None:
            behind_layer = anchor.official and leg.start is not None
            yield ('head', leg.anchor, behind_layer), anchor.published_head if behind_layer else anchor.head
