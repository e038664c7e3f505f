"""The parts that stitches run, and the tree they form: stitches that begin with the same parts share a path."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from typing import NamedTuple

from torch import Tensor

from .joined_anchors import JoinedAnchors


class StitchPart(NamedTuple):
    """A step of a stitch; equal parts are the same function.

    Attributes:
        kind: 'stem', 'module', 'layer', 'head' or 'published_head'.
        anchor: name of the anchor it belongs to; empty for a stitch layer.
        number: position of the module in its line, or index of the stitch layer.
        private: id of the stitch that has the part for itself; None where stitches share it.
    """

    kind: str
    anchor: str = ''
    number: int = 0
    private: int | None = None


class PartNode:
    """A part at its place in the tree.

    Attributes:
        part: what runs here; None at the root.
        owner: the first stitch that passes, which names the place for all that do.
        leg: index of the leg that the part belongs to (a stitch layer belongs to the leg behind it).
        depth: how many parts run before.
        then: what follows.
        stitches: those that end here.
    """

    def __init__(self, part: StitchPart | None, owner: int, leg: int, depth: int) -> None:
        self.part, self.owner, self.leg, self.depth = part, owner, leg, depth
        self.then: dict[StitchPart, PartNode] = {}
        self.stitches: list[int] = []

    def walk(self) -> Iterator[PartNode]:
        """The nodes behind this one, each before those that follow it."""
        for node in self.then.values():
            yield node
            yield from node.walk()


def build_part_tree(
    net: JoinedAnchors, stitches: Iterable[int], cut: bool = False, private: Container[int] = ()
) -> PartNode:
    """The tree of the parts of some stitches.

    Args:
        net: whose stitches they are.
        stitches: ids.
        cut: let each path end with its last stitch layer.
        private: ids of stitches that share their front only, because they have parameters of their own behind it.
    """
    root = PartNode(None, -1, 0, -1)
    for stitch in stitches:
        node, last = root, len(net.stitches[stitch].legs) - 1
        for depth, (leg, part) in enumerate(parts_of(net, stitch)):
            if leg and stitch in private:
                part = part._replace(private=stitch)
            if part not in node.then:
                node.then[part] = PartNode(part, stitch, leg, depth)
            node = node.then[part]
            if cut and leg == last and part.kind == 'layer':
                break
        node.stitches.append(stitch)
    return root


def parts_of(net: JoinedAnchors, stitch: int) -> Iterator[tuple[int, StitchPart]]:
    """The parts of a stitch in the order they run, each with the index of its leg."""
    chosen = net.stitches[stitch]
    for i, leg in enumerate(chosen.legs):
        anchor = net.anchor(leg.anchor)
        yield i, StitchPart('layer', number=chosen.layers[i - 1]) if i else StitchPart('stem', leg.anchor)
        for position in range(len(anchor.line()))[leg.start : leg.stop]:
            yield i, StitchPart('module', leg.anchor, position)
        if leg.stop is None:
            yield i, StitchPart('published_head' if anchor.official and i else 'head', leg.anchor)


def function_of(net: JoinedAnchors, part: StitchPart) -> Callable[[Tensor], Tensor]:
    """The function of a part, looked up in the net now."""
    if part.kind == 'layer':
        return net.layer(part.number)
    anchor = net.anchor(part.anchor)
    if part.kind == 'module':
        return anchor.line()[part.number]
    return {'stem': anchor.run_stem, 'head': anchor.head, 'published_head': anchor.published_head}[part.kind]
