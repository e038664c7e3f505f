"""What the blocks of a network are: its repeated residual units, or what repeats in a plain chain."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

from torch import Tensor, fx, nn

from ...errors import CannotStitch
from ..boundary import Boundary
from .dataflow import Dataflow, Span, outermost, within
from .recording import ModuleCall

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity)


def find_spans(flow: Dataflow, model: nn.Module) -> list[Span]:
    """The modules of a network's line: blocks, and what opens a stage before them.

    Raises:
        CannotStitch: fewer than two blocks.
    """
    weights = {path: _weights(module) for path, module in model.named_modules()}
    heavy = [call for call in flow.closed if weights[call.path]]
    calls: list[ModuleCall] = []
    for find in (_residual, _repeated):
        calls = find(flow, heavy, weights)
        if len(calls) > 1:
            units = sorted((flow.closed[c] for c in calls), key=lambda unit: unit.start)
            return _with_entries(flow, units, _behind(flow, heavy, calls))
    for other in (_functional, _groups):
        units = other(flow)
        if len(units) > 1:
            return _with_entries(flow, units, [])
    raise CannotStitch(_why_none(flow))


def _residual(flow: Dataflow, heavy: list[ModuleCall], weights: dict[str, int]) -> list[ModuleCall]:
    """Closed calls of classes that contain a parallel path."""
    branching = [call for call in heavy if flow.own_branches(call)]
    kinds = Counter(call.kind for call in heavy)
    units = set()
    for call in branching:
        inner = Counter(c.kind for c in branching if c is not call and within(c, call))
        if max(inner.values(), default=0) < 2:  # else it is a stage with a path around its blocks
            units.add(call.kind)
    places = Counter(place for call in heavy if call.kind in units and (place := _place(call)) != call.path)
    # a lone one of its class counts in a row with others, but not as a part of stem or head
    found = [c for c in heavy if c.kind in units and (kinds[c.kind] > 1 or places[_place(c)] > 1)]
    return _widened(flow, heavy, outermost(found), weights)


def _place(call: ModuleCall) -> str:
    """The path without its numbers: the same for all modules of one list."""
    return re.sub(r'\d+', '#', call.path)


def _widened(
    flow: Dataflow, heavy: list[ModuleCall], units: list[ModuleCall], weights: dict[str, int]
) -> list[ModuleCall]:
    """Units, each widened to the closed call around it that mainly repeats it."""
    chosen: list[ModuleCall] = []
    around: dict[ModuleCall, list[ModuleCall]] = {c: [u for u in units if within(u, c)] for c in heavy}
    most: dict[type, int] = defaultdict(int)
    for call, inside in around.items():
        most[call.kind] = max(most[call.kind], len(inside))
    times = Counter(call.kind for call in heavy)
    for unit in units:
        for call in sorted((c for c in heavy if around[c] == [unit]), key=lambda c: c.first - c.last):
            generic = issubclass(call.kind, _CONTAINERS)
            lesser = weights[unit.path] * 2 < weights[call.path]
            repeated = not generic and lesser and times[call.kind] > 1 and most[call.kind] == 1
            more = weights[call.path] > weights[unit.path]
            if more and (repeated or _shapes(flow, call) == _shapes(flow, unit)):
                unit = call
                break
        chosen.append(unit)
    kinds = {call.kind for call in chosen if call not in units and not issubclass(call.kind, _CONTAINERS)}
    chosen += [call for call in heavy if call.kind in kinds]  # also those that hold no unit
    return _composed(heavy, outermost(chosen))


def _composed(heavy: list[ModuleCall], units: list[ModuleCall]) -> list[ModuleCall]:
    """Units, with one call in place of several where every call of its class holds the same sequence of kinds."""
    rows: dict[type, list[tuple[ModuleCall, tuple[type, ...]]]] = defaultdict(list)
    for call in heavy:
        if not issubclass(call.kind, _CONTAINERS):
            rows[call.kind].append((call, tuple(u.kind for u in units if u is not call and within(u, call))))
    for found in rows.values():
        made = {row for _, row in found}
        if len(found) > 1 and len(made) == 1 and len(set(*made)) > 1:
            units = [*units, *(call for call, _ in found)]
    return outermost(units)


def _repeated(flow: Dataflow, heavy: list[ModuleCall], weights: dict[str, int]) -> list[ModuleCall]:
    """For plain chains: closed calls of the repeated class that holds most of the weights."""
    kinds: dict[type, list[ModuleCall]] = defaultdict(list)
    for call in heavy:
        if not call.kind.__module__.startswith('torch.') and not issubclass(call.kind, _CONTAINERS):
            kinds[call.kind].append(call)
    held = {kind: sum(weights[c.path] for c in calls) for kind, calls in kinds.items() if len(calls) > 1}
    best = max(held, key=lambda kind: held[kind], default=None)
    return outermost(kinds[best]) if best is not None else []


def _functional(flow: Dataflow) -> list[Span]:
    """Repeated stretches between cut points whose code is part of a larger forward, not a separate module."""
    open_cuts = [i for i in sorted(flow.cuts) if flow.open(i)]
    nodes = flow.recording.nodes
    kinds: dict[Any, list[Span]] = defaultdict(list)
    for start, stop in pairwise(open_cuts):
        between = [nodes[i] for i in range(start + 1, stop + 1) if i in flow.alive]
        if len(between) > 1 and any(_weight(n) for node in between for n in node.all_input_nodes):
            kinds[tuple(str(node.target) for node in between)].append(Span(start, stop))
    return sorted((unit for units in kinds.values() if len(units) > 1 for unit in units), key=lambda unit: unit.start)


def _groups(flow: Dataflow) -> list[Span]:
    """Each weight of a plain chain up to the next: a convolution with its norm and activation."""
    if 2 * len(flow.cuts) < len(flow.alive):
        return []
    open_cuts = [i for i in sorted(flow.cuts) if flow.open(i)]
    starts = []
    for before, at in pairwise(open_cuts):
        if any(_weight(n) for n in flow.recording.nodes[at].all_input_nodes):
            starts.append(before)
    units = []
    for start, end in zip(starts, [*starts[1:], *open_cuts[-1:]], strict=False):
        first = next(i for i in open_cuts if i > start)
        grid = _grid(flow, first)
        units.append(Span(start, max(i for i in open_cuts if first <= i <= end and _grid(flow, i) == grid)))
    # the first is the stem, and what no longer has a grid is the head
    return [unit for unit in units[1:] if _grid(flow, unit.stop) != (1, 1)]


def _with_entries(flow: Dataflow, units: list[Span], behind: list[Span]) -> list[Span]:
    """Units and what lies between them: an entry where it changes grid or width, else part of the next unit."""
    items = [units[0]]
    for unit in units[1:]:
        start = items[-1].stop
        if start != unit.start and _differ(flow, start, unit.start):
            items += [Span(start, unit.start, entry=True), unit]
        else:
            items.append(Span(start, unit.stop))
    for item in behind:
        if _differ(flow, items[-1].stop, item.stop):
            items.append(Span(items[-1].stop, item.stop))
    return items


def _behind(flow: Dataflow, heavy: list[ModuleCall], units: list[ModuleCall]) -> list[Span]:
    """Closed calls after the last unit, in the module that holds all units."""
    start, stop = min(c.first for c in units), max(c.last for c in units)
    holding = [c for c in flow.recording.calls if c.parent and c.first <= start and c.last > stop]
    if not holding:
        return []
    inner = min(holding, key=lambda c: c.last - c.first)
    return [flow.closed[c] for c in outermost(c for c in heavy if c.first >= stop and within(c, inner))]


def _shapes(flow: Dataflow, call: ModuleCall) -> tuple[Boundary | None, Boundary | None]:
    span = flow.closed[call]
    nodes = flow.recording.nodes
    return flow.boundary(nodes[span.start]), flow.boundary(nodes[span.stop])


def _differ(flow: Dataflow, start: int, stop: int) -> bool:
    a, b = (flow.boundary(flow.recording.nodes[i]) for i in (start, stop))
    assert a is not None  # spans lie between open cuts
    assert b is not None
    return not a.joins(b) or a.channels != b.channels


def _grid(flow: Dataflow, index: int) -> tuple[int, int]:
    found = flow.boundary(flow.recording.nodes[index])
    assert found is not None
    return found.grid


def _why_none(flow: Dataflow) -> str:
    """Why a network has no blocks: names the longest stretch without a cut point."""
    nodes, at = flow.recording.nodes, [i for i in sorted(flow.cuts) if flow.open(i)]
    places = [*at, flow.recording.output.meta['index']]
    start, stop = max(pairwise(places), key=lambda pair: pair[1] - pair[0], default=(0, 0))
    if not flow.branches(start + 1, max(stop, start + 1)):
        return 'it has fewer than two blocks, because no module repeats and no two weights follow each other'
    paths = [p for node in nodes[start + 1 : stop + 1] if (p := node.meta['path']) and node.meta['index'] in flow.alive]
    ends = f' from {paths[0]} to {paths[-1]}' if paths else ''
    return f'parallel branches run all the way{ends}, so no single tensor between two blocks carries everything'


def _weight(node: fx.Node) -> bool:
    value = node.meta['value']
    return node.op == 'get_attr' and isinstance(value, Tensor) and value.ndim > 1


def _weights(module: nn.Module) -> int:
    """Number of values in the matrices and kernels of a module."""
    return sum(math.prod(p.shape) for p in module.parameters() if p.ndim > 1)
