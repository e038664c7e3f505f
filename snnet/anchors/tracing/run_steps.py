"""A recording as few steps: calls of whole modules where possible, single operations elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from .recording import ModuleCall, Recording


@dataclass(eq=False)
class RunStep:
    """One step of a stretch: a call of a whole module, or an operation outside of such calls."""

    what: ModuleCall | fx.Node
    at: int


class RunSteps:
    """A recording as few steps: calls of whole modules wherever no position lies within them.

    Args:
        recording: the run.
        open_paths: paths of modules that are not run as one step.
    """

    def __init__(self, recording: Recording, open_paths: set[str]) -> None:
        self.recording, self.open_paths = recording, open_paths
        self.steps: list[RunStep] = []
        self.made: dict[fx.Node, tuple[RunStep, tuple[Any, ...]]] = {}
        self.holder: dict[fx.Node, str] = {}
        whole: set[ModuleCall] = set()
        spans = []
        for call in recording.calls:
            if call.path not in open_paths and not any(c in whole for c in _around(call)):
                whole.add(call)
                spans.append(call)
        spans.reverse()
        at = 0
        while at < len(recording.nodes) or spans:
            if spans and spans[-1].first <= at:
                call = spans.pop()
                step = RunStep(call, call.first)
                for node in recording.nodes[call.first : call.last]:
                    self.holder[node] = call.path
                for node, route in nodes_in(call.output):
                    if node.meta['index'] >= call.first:
                        self.made.setdefault(node, (step, route))
                at = max(at, call.last)
            else:
                step = RunStep(recording.nodes[at], at)
                self.made[recording.nodes[at]] = step, ()
                at += 1
            self.steps.append(step)


def nodes_in(value: Any, route: tuple[Any, ...] = ()) -> Iterator[tuple[fx.Node, tuple[Any, ...]]]:
    """The nodes in nested arguments, each with the keys that lead to it."""
    if isinstance(value, fx.Node):
        yield value, route
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from nodes_in(item, (*route, i))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from nodes_in(item, (*route, key))


def _around(call: ModuleCall) -> Iterator[ModuleCall]:
    while call.parent:
        call = call.parent
        yield call
