"""Where a recorded network can be cut, and what its blocks are.

A cut point is a tensor through which everything flows. A module call is closed where it leads from one cut point to
another; closed calls that hold a branch (a residual or parallel path) are the units that blocks are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from ...errors import CannotStitch
from ..boundary import Boundary
from .recording import ModuleCall, Recording

BoundaryOfNode = Callable[[fx.Node], Boundary | None]


@dataclass(frozen=True)
class Span:
    """A module of the line as the nodes from one cut point to another (indices).

    Attributes:
        start, stop: the nodes that flow in and out.
        entry: whether it only opens a stage.
    """

    start: int
    stop: int
    entry: bool = False


class Dataflow:
    """The cut points and closed calls of a recording.

    Args:
        recording: one run of the network.
        boundary: gives what flows at a node, or None where a line cannot be cut.
    """

    def __init__(self, recording: Recording, boundary: BoundaryOfNode) -> None:
        self.recording, self.boundary, nodes = recording, boundary, recording.nodes
        if not isinstance(recording.output, fx.Node):
            raise CannotStitch(f'it returns {type(recording.output).__name__}, not one tensor of logits')
        self.alive = needed(recording.output, nodes)
        self.cuts = cut_points([[i for i in inputs(n) if i in self.alive] for n in nodes], sorted(self.alive))
        self.not_cut_before = [0]  # per node: how many before it are alive but not cut points
        for i in range(len(nodes)):
            self.not_cut_before.append(self.not_cut_before[-1] + (i in self.alive and i not in self.cuts))
        self.closed = {call: span for call in recording.calls if (span := self._span(call))}

    def open(self, index: int) -> bool:
        """Whether a line can be cut at a node."""
        return index in self.cuts and self.boundary(self.recording.nodes[index]) is not None

    def branches(self, first: int, last: int) -> int:
        """How many of `nodes[first:last]` run on parallel paths."""
        return self.not_cut_before[last] - self.not_cut_before[first]

    def own_branches(self, call: ModuleCall) -> int:
        """How many nodes of a closed call run on parallel paths, not counting the closed calls within it."""
        inner = outermost([c for c in self.closed if c is not call and within(c, call)])
        return self.branches(call.first, call.last) - sum(self.branches(c.first, c.last) for c in inner)

    def _span(self, call: ModuleCall) -> Span | None:
        given = {n.meta['index'] for n in _nodes((call.args, call.kwargs)) if n.meta['flow']}
        out = call.output
        if len(given) != 1 or not isinstance(out, fx.Node) or call.first == call.last:
            return None
        (start,), stop = given, out.meta['index']
        if not (call.first <= stop < call.last and self.open(start) and self.open(stop)):
            return None
        for i in range(call.first, call.last):
            if i in self.alive and any(j < call.first and j != start for j in inputs(self.recording.nodes[i])):
                return None
        return Span(start, stop)


def inputs(node: fx.Node) -> list[int]:
    """Indices of the nodes whose features a node uses."""
    return [n.meta['index'] for n in node.all_input_nodes if n.meta['flow']] if node.meta['flow'] else []


def cut_points(before: Sequence[Sequence[int]], order: Sequence[int]) -> set[int]:
    """Nodes of a graph through which every path from its first node to its last leads.

    Args:
        before: for each node, the nodes that lead to it.
        order: the nodes on such paths, each after those that lead to it.
    """
    last = dict.fromkeys(order, -1)
    for node in order:
        for earlier in before[node]:
            last[earlier] = max(last[earlier], node)
    found, reach = set(), -1
    for node in order:
        if reach <= node:
            found.add(node)
        reach = max(reach, last[node])
    return found


def outermost(calls: Iterable[ModuleCall]) -> list[ModuleCall]:
    """The calls that lie within none of the others; of nested calls over the same nodes, the innermost."""
    found: list[ModuleCall] = []
    for call in sorted(calls, key=lambda c: (c.first, -c.last)):
        while found and (found[-1].first, found[-1].last) == (call.first, call.last):
            found.pop()
        if not found or not within(call, found[-1]):
            found.append(call)
    return found


def needed(output: Any, nodes: list[fx.Node]) -> set[int]:
    """Indices of the nodes through which features reach the output."""
    found, todo = set(), [n.meta['index'] for n in _nodes(output)]
    while todo:
        if (index := todo.pop()) not in found:
            found.add(index)
            todo += inputs(nodes[index])
    return found


def _nodes(value: Any) -> list[fx.Node]:
    """The nodes in nested arguments."""
    found: list[fx.Node] = []
    fx.node.map_arg(value, lambda n: found.append(n))
    return found


def within(inner: ModuleCall, outer: ModuleCall) -> bool:
    """Whether a call happened within another, or is it."""
    return inner is outer or (outer.first <= inner.first and inner.last <= outer.last and outer.number < inner.number)


def is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers."""
    name = str(getattr(node.target, '__name__', node.target))
    if 'dropout' in name:
        given = {**dict(zip(('p', 'training'), node.args[1:3], strict=False)), **node.kwargs}
        return bool(given.get('p', 0.5)) and bool(given.get('training', True))
    return name in ('bernoulli', 'bernoulli_', 'rand', 'rand_like', 'randn', 'randn_like', 'randperm', 'uniform_')
