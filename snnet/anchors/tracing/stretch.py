"""Writes the code between two nodes of a recording."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx
from torch.fx.node import map_arg

from ...errors import CannotStitch
from .dataflow import is_random
from .recording import ModuleCall, UnknownTensor, check, storage
from .run_steps import RunStep, RunSteps, nodes_in

Bind = Callable[[fx.Node, fx.Node], Any]


class NeededInside(Exception):
    """Something computed within a call is needed outside, so the call cannot be one step; `path` names its module."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class CrossingFlow(Exception):
    """A stretch needs what flowed before it."""


class Stretch:
    """Writes the code between two nodes of a record.

    Args:
        steps: the recording.
        start: the node that flows in.
        stop: the node that flows out; the network's output where None.
        alive: indices of the nodes that the output depends on.
        bind: gives a number computed before the stretch, from the node that computed it and the node that flows in.
    """

    def __init__(self, steps: RunSteps, start: int, stop: int | None, alive: set[int], bind: Bind) -> None:
        nodes = steps.recording.nodes
        self.steps, self.bind = steps, bind
        self.start, self.stop = start, len(nodes) if stop is None else stop
        self.graph = fx.Graph()
        self.x = self.graph.placeholder('x')
        flows = storage(nodes[start].meta['value'])
        if any(n.meta.get('wrote') == flows for n in nodes[start + 1 : self.stop + 1]):
            self.x = self.graph.call_method('clone', (self.x,))  # others may still need the input
        self.known: dict[fx.Node, Any] = {nodes[start]: self.x}
        self.ran: dict[RunStep, fx.Node] = {}
        for step in steps.steps:
            if self._inside(step):
                self._maybe(step, alive)
        out = steps.recording.output if stop is None else nodes[stop]
        self.graph.output(map_arg(out, self._fetch))
        called = [str(node.target) for node in self.graph.nodes if node.op == 'call_module']
        self.paths = list(dict.fromkeys(called))
        body = [node for node in self.graph.nodes if node.op not in ('placeholder', 'output')]
        self.lone = len(body) == 1 and body[0].op == 'call_module' and (body[0].args, body[0].kwargs) == ((self.x,), {})
        self.lone = self.lone and next(iter(reversed(self.graph.nodes))).args == (body[0],)

    def _inside(self, step: RunStep) -> bool:
        return self.start < step.at <= self.stop

    def _maybe(self, step: RunStep, alive: set[int]) -> None:
        """Runs a step at its place where the output depends on it."""
        what = step.what
        if isinstance(what, fx.Node):
            if what.meta['index'] in alive or (what.target is check and not self._foreign(what)):
                self._run(step)
            return
        if not any(n.meta['flow'] for n, _ in nodes_in((what.args, what.kwargs))):
            return
        try:
            self._run(step)
        except CrossingFlow:
            if alive & set(range(what.first, what.last)):
                raise

    def _fetch(self, node: fx.Node) -> Any:
        if node in self.known:
            return self.known[node]
        if node not in self.steps.made:
            raise NeededInside(self.steps.holder[node])
        step, route = self.steps.made[node]
        if not self._inside(step):
            if node.target is getattr and node.args[1] in ('dtype', 'device'):
                self.known[node] = self.graph.call_function(getattr, (self.x, node.args[1]))
                return self.known[node]
            if is_number(node) and self._foreign(node):
                self.known[node] = self.bind(node, self.x)
                return self.known[node]
            if node.meta['flow']:
                raise CrossingFlow(node.meta['path'])
            self._refuse_draws(step)
        found = self._run(step)
        for key in route:
            found = self.graph.call_function(operator.getitem, (found, key))
        self.known[node] = found
        return found

    def _refuse_draws(self, step: RunStep) -> None:
        """What does not depend on the image is computed again by each stretch, so it must not be random."""
        what = step.what
        own = [what] if isinstance(what, fx.Node) else self.steps.recording.nodes[what.first : what.last]
        for node in own:
            if is_random(node):
                raise CannotStitch(f'{node.meta["path"]} draws random numbers for several blocks at once')

    def _run(self, step: RunStep) -> fx.Node:
        if step in self.ran:
            return self.ran[step]
        what = step.what
        if _unknown((what.args, what.kwargs)):
            path = (what.path if isinstance(what, ModuleCall) else what.meta['path']) or 'its forward'
            raise CannotStitch(f'{path} uses a tensor that is not a parameter or buffer of the network')
        args, kwargs = map_arg(what.args, self._fetch), map_arg(what.kwargs, self._fetch)
        if isinstance(what, ModuleCall):
            made = self.graph.create_node('call_module', what.path, tuple(args), dict(kwargs))
        else:
            made = self.graph.create_node(what.op, what.target, tuple(args), dict(kwargs))
            self.known[what] = made
        self.ran[step] = made
        return made

    def _foreign(self, node: fx.Node) -> bool:
        """Whether a number depends on the size of features before the stretch."""
        todo = [node]
        while todo:
            current = todo.pop()
            if current.meta['flow']:
                if current.meta['index'] < self.start:
                    return True
            else:
                todo += current.all_input_nodes
        return False


def is_number(node: fx.Node) -> bool:
    """Whether a node computes a number from sizes."""
    return isinstance(node.meta['value'], int | float)


def _unknown(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_unknown, value))
    if isinstance(value, dict):
        return any(map(_unknown, value.values()))
    return isinstance(value, UnknownTensor)
