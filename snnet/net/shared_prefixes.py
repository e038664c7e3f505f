"""Many stitches on the same images: the parts that they have in common run once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .part_tree import PartNode, build_part_tree, function_of
from .stitch_tensors import Table, computing_with
from .stitchable_net import StitchableNet

_Entrant = tuple[int, Tensor]
"""A stitch and its features behind its last stitch layer."""
_Tables = Mapping[int, tuple[Table, ...] | None]


def all_logits(
    net: StitchableNet, images: Tensor, stitches: Sequence[int], suffix_batch: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """Logits (N, classes) of many stitches, each bit for bit what `net(images, stitch=id)` gives.

    The stitches form a tree of parts (stem, modules, stitch layers, head). Each branch runs once, so stitches share
    the front that they have in common. Memory holds the features along one branch.

    With `suffix_batch`, stitches with the same end run its modules together, as one batch that grows where they enter.
    That saves calls where batches are small. The work is the same, and logits may differ by rounding (1e-6), because
    kernels depend on the batch size. Stitches with BatchNorm statistics or parameters of their own run separately.

    Args:
        net: in eval mode.
        images: (N, C, H, W).
        stitches: ids.
        suffix_batch: most images in a batch of several stitches (memory holds their features); 0 merges none.

    Yields:
        Pairs of id and logits, in the order of the tree.
    """

    statistics, own = net.statistics, net.own_parameters
    tables = {stitch: net.tables(stitch) for stitch in stitches}
    private = frozenset(own.stitches if own else ())
    cut = 2 * len(images) <= suffix_batch
    lists = statistics.alike(stitches) if statistics else []  # a part with other statistics is another part
    listed = {stitch for alike in lists for stitch in alike}
    others = [stitch for stitch in stitches if stitch not in listed]
    if cut:  # those with parameters of their own have no end in common with others
        lists.append([stitch for stitch in others if stitch in private])
        others = [stitch for stitch in others if stitch not in private]
    for alike in lists:
        for node in build_part_tree(net, alike, private=private).then.values():
            yield from _visit(net, node, images, tables)
    waiting: dict[str, list[_Entrant]] = {}
    for node in build_part_tree(net, others, cut, private).then.values():
        for stitch, x in _visit(net, node, images, tables):
            legs = net.stitches[stitch].legs
            if not cut or len(legs) == 1:
                yield stitch, x
                continue
            entrants = waiting.setdefault(legs[-1].anchor, [])
            entrants.append((stitch, x))
            if (len(entrants) + 1) * len(images) > suffix_batch:
                yield from _finish(net, waiting.pop(legs[-1].anchor))
    for entrants in waiting.values():
        yield from _finish(net, entrants)


def wanted_logits(net: StitchableNet, images: Tensor, wanted: Mapping[int, Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Logits of stitches, each for images of its own: a part that several share runs once, on all that they want.

    Args:
        net: in eval mode.
        images: (N, C, H, W).
        wanted: by stitch, which of the images it takes (N,), at least one.

    Yields:
        Pairs of id and logits (n, classes), in the order of the tree.
    """
    tables = {stitch: net.tables(stitch) for stitch in wanted}
    private = frozenset(net.own_parameters.stitches if net.own_parameters else ())
    lists = net.statistics.alike(wanted) if net.statistics else []
    listed = {stitch for alike in lists for stitch in alike}
    every = torch.ones(len(images), dtype=torch.bool)
    for alike in [*lists, [stitch for stitch in wanted if stitch not in listed]]:
        for node in build_part_tree(net, alike, private=private).then.values():
            yield from _visit_wanted(net, node, images, every, tables, wanted)


def _visit_wanted(
    net: StitchableNet, node: PartNode, x: Tensor, held: Tensor, tables: _Tables, wanted: Mapping[int, Tensor]
) -> Iterator[_Entrant]:
    """Runs the part at a node for the images that a stitch behind it wants, of those that x holds; then the rest."""
    assert node.part is not None  # only the root has none
    needed = torch.stack([wanted[stitch] for other in (node, *node.walk()) for stitch in other.stitches]).any(0)
    own = tables[node.owner]
    with computing_with(None if own is None else own[node.leg]):
        x = function_of(net, node.part)(x[needed[held].to(x.device)])
    for stitch in node.stitches:
        yield stitch, x[wanted[stitch][needed].to(x.device)]
    for child in node.then.values():
        yield from _visit_wanted(net, child, x, needed, tables, wanted)


def _visit(net: StitchableNet, node: PartNode, x: Tensor, tables: _Tables) -> Iterator[_Entrant]:
    """Runs the part at a node and everything behind it, with the BatchNorm statistics of this place in the tree."""
    assert node.part is not None  # only the root has none
    own = tables[node.owner]
    if own is None:
        x = function_of(net, node.part)(x)
    else:
        with computing_with(own[node.leg]):
            x = function_of(net, node.part)(x)
    for stitch in node.stitches:
        yield stitch, x
    for child in node.then.values():
        yield from _visit(net, child, x, tables)


def _finish(net: StitchableNet, entrants: list[_Entrant]) -> Iterator[_Entrant]:
    """Runs the last leg of stitches with the same end, all in one batch."""
    starts = {stitch: net.stitches[stitch].legs[-1].start or 0 for stitch, _ in entrants}
    order = sorted(entrants, key=lambda entrant: starts[entrant[0]])
    anchor = net.anchor(net.stitches[order[0][0]].legs[-1].anchor)
    last = len(anchor.line())
    inside: list[Tensor] = []
    for position in range(starts[order[0][0]], last + 1):
        inside += [features for stitch, features in order if starts[stitch] == position]
        inside = [anchor.run(torch.cat(inside), position, position + 1 if position < last else None)]
    logits = torch.split(inside[0], len(order[0][1]))
    yield from zip((stitch for stitch, _ in order), logits, strict=True)
