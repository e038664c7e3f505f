"""Stretches of a recorded network as code that runs them in the network itself."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ...errors import CannotStitch
from .dataflow import draws
from .record import Call, Record, Unknown, check, storage

Bind = Callable[[fx.Node, fx.Node], Any]


class Inside(Exception):
    """Something within a call is needed outside, so the call cannot stand as one; `path` names its module."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class Crossing(Exception):
    """A stretch needs what flowed before it."""


class Code:
    """Python code of a stretch, a function of the network and of what flows in; copies share it.

    Args:
        graph: the stretch; its modules and parameters are those of the network, by name.
    """

    def __init__(self, graph: fx.Graph) -> None:
        made = graph.python_code('self')
        self._set(made.src, made.globals)

    def _set(self, source: str, names: dict[str, Any]) -> None:
        self.source, self._names = source, names
        place: dict[str, Any] = dict(names)
        exec(compile(source, '<stretch of a recorded network>', 'exec'), place)
        self.run: Callable[[nn.Module, Tensor], Any] = place['forward']

    def __deepcopy__(self, memo: Any) -> Code:
        return self

    def __getstate__(self) -> Any:
        modules = {key: value.__name__ for key, value in self._names.items() if isinstance(value, ModuleType)}
        return self.source, modules, {key: value for key, value in self._names.items() if key not in modules}

    def __setstate__(self, state: Any) -> None:
        source, modules, others = state
        self._set(source, {**{key: importlib.import_module(name) for key, name in modules.items()}, **others})


class Segment(nn.Module):
    """Runs a stretch of a network in the network itself, whose modules it looks up at every run.

    Its children are the modules that it calls, by number; none is registered here.

    Args:
        model: the network.
        paths: the modules of the network that it calls.
        codes: what to run in eval and in train mode.
        shape: of what may flow in, without the batch, where the stretch is tied to one size of images.
        title: what messages call it.
    """

    def __init__(
        self,
        model: nn.Module,
        paths: Sequence[str],
        codes: tuple[Code, Code],
        shape: tuple[int, ...] | None,
        title: str,
    ) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that it is not registered: the anchor holds it
        self._paths, self._codes, self._shape, self._title = tuple(paths), codes, shape, title

    def forward(self, x: Tensor) -> Any:
        """Features (N, ...) at the beginning of the stretch to those at its end."""
        if self._shape is not None and tuple(x.shape[1:]) != self._shape:
            sizes = ['x'.join(str(int(n)) for n in shape) for shape in (self._shape, x.shape[1:])]
            raise CannotStitch(f'{self._title} is tied to one size of images: it takes {sizes[0]}, not {sizes[1]}')
        model = self._model[0]
        return self._codes[model.training].run(model, x)

    @property
    def _modules(self) -> dict[str, nn.Module | None]:
        model = self.__dict__.get('_model')
        return {str(i): model[0].get_submodule(path) for i, path in enumerate(self._paths)} if model else {}

    @_modules.setter
    def _modules(self, value: Any) -> None:
        """For nn.Module, which makes an empty dict."""

    def __getattr__(self, name: str) -> Any:
        if name.isdigit():
            return self._model[0].get_submodule(self._paths[int(name)])
        raise AttributeError(f'{type(self).__name__} has no attribute {name}')

    def __setattr__(self, name: str, value: Any) -> None:
        if name.isdigit():
            owner, _, leaf = self._paths[int(name)].rpartition('.')
            setattr(self._model[0].get_submodule(owner), leaf, value)
        else:
            super().__setattr__(name, value)


@dataclass(eq=False)
class Step:
    """What a stretch runs as one: a call of a module as a whole, or an operation outside of such calls."""

    what: Call | fx.Node
    at: int


class Steps:
    """A record as few steps: calls of whole modules wherever no position lies within.

    Args:
        record: the run.
        through: paths of modules that do not stand as one.
    """

    def __init__(self, record: Record, through: set[str]) -> None:
        self.record, self.through = record, through
        self.steps: list[Step] = []
        self.made: dict[fx.Node, tuple[Step, tuple[Any, ...]]] = {}
        self.holder: dict[fx.Node, str] = {}
        whole: set[Call] = set()
        spans = []
        for call in record.calls:
            if call.path not in through and not any(c in whole for c in _around(call)):
                whole.add(call)
                spans.append(call)
        spans.reverse()
        at = 0
        while at < len(record.nodes) or spans:
            if spans and spans[-1].first <= at:
                call = spans.pop()
                step = Step(call, call.first)
                for node in record.nodes[call.first : call.last]:
                    self.holder[node] = call.path
                for node, route in _leaves(call.output):
                    if node.meta['index'] >= call.first:
                        self.made.setdefault(node, (step, route))
                at = max(at, call.last)
            else:
                step = Step(record.nodes[at], at)
                self.made[record.nodes[at]] = step, ()
                at += 1
            self.steps.append(step)


class Stretch:
    """Writes the code between two nodes of a record.

    Args:
        steps: the record.
        start: the node that flows in.
        stop: the node that flows out; the network's output where None.
        alive: indices of the nodes through which the output is computed.
        bind: gives a number that was computed before the stretch, from the node that computed it and what flows in.
    """

    def __init__(self, steps: Steps, start: int, stop: int | None, alive: set[int], bind: Bind) -> None:
        nodes = steps.record.nodes
        self.steps, self.bind = steps, bind
        self.start, self.stop = start, len(nodes) if stop is None else stop
        self.graph = fx.Graph()
        self.x = self.graph.placeholder('x')
        flows = storage(nodes[start].meta['value'])
        if any(n.meta.get('wrote') == flows for n in nodes[start + 1 : self.stop + 1]):
            self.x = self.graph.call_method('clone', (self.x,))  # others may still need what flows in
        self.known: dict[fx.Node, Any] = {nodes[start]: self.x}
        self.ran: dict[Step, fx.Node] = {}
        for step in steps.steps:
            if self._inside(step):
                self._maybe(step, alive)
        out = steps.record.output if stop is None else nodes[stop]
        self.graph.output(map_arg(out, self._fetch))
        called = [str(node.target) for node in self.graph.nodes if node.op == 'call_module']
        self.paths = list(dict.fromkeys(called))
        body = [node for node in self.graph.nodes if node.op not in ('placeholder', 'output')]
        self.lone = len(body) == 1 and body[0].op == 'call_module' and (body[0].args, body[0].kwargs) == ((self.x,), {})
        self.lone = self.lone and next(iter(reversed(self.graph.nodes))).args == (body[0],)

    def _inside(self, step: Step) -> bool:
        return self.start < step.at <= self.stop

    def _maybe(self, step: Step, alive: set[int]) -> None:
        """Runs a step at its place where what flows goes through it."""
        what = step.what
        if isinstance(what, fx.Node):
            if what.meta['index'] in alive or (what.target is check and not self._foreign(what)):
                self._run(step)
            return
        if not any(n.meta['flow'] for n, _ in _leaves((what.args, what.kwargs))):
            return
        try:
            self._run(step)
        except Crossing:
            if alive & set(range(what.first, what.last)):
                raise

    def _fetch(self, node: fx.Node) -> Any:
        if node in self.known:
            return self.known[node]
        if node not in self.steps.made:
            raise Inside(self.steps.holder[node])
        step, route = self.steps.made[node]
        if not self._inside(step):
            if node.target is getattr and node.args[1] in ('dtype', 'device'):
                self.known[node] = self.graph.call_function(getattr, (self.x, node.args[1]))
                return self.known[node]
            if is_number(node) and self._foreign(node):
                self.known[node] = self.bind(node, self.x)
                return self.known[node]
            if node.meta['flow']:
                raise Crossing(node.meta['path'])
            self._refuse_draws(step)
        found = self._run(step)
        for key in route:
            found = self.graph.call_function(operator.getitem, (found, key))
        self.known[node] = found
        return found

    def _refuse_draws(self, step: Step) -> None:
        """What is computed beside the flow is computed anew by each stretch: it must come out the same each time."""
        what = step.what
        own = [what] if isinstance(what, fx.Node) else self.steps.record.nodes[what.first : what.last]
        for node in own:
            if draws(node):
                raise CannotStitch(f'{node.meta["path"]} draws random numbers for several blocks at once')

    def _run(self, step: Step) -> fx.Node:
        if step in self.ran:
            return self.ran[step]
        what = step.what
        if _unknown((what.args, what.kwargs)):
            path = (what.path if isinstance(what, Call) else what.meta['path']) or 'its forward'
            raise CannotStitch(f'{path} uses a tensor that is no parameter or buffer of the network')
        args, kwargs = map_arg(what.args, self._fetch), map_arg(what.kwargs, self._fetch)
        if isinstance(what, Call):
            made = self.graph.create_node('call_module', what.path, tuple(args), dict(kwargs))
        else:
            made = self.graph.create_node(what.op, what.target, tuple(args), dict(kwargs))
            self.known[what] = made
        self.ran[step] = made
        return made

    def _foreign(self, node: fx.Node) -> bool:
        """Whether a number was computed from the size of what flowed before the stretch."""
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


def _around(call: Call) -> Iterator[Call]:
    while call.parent:
        call = call.parent
        yield call


def _leaves(value: Any, route: tuple[Any, ...] = ()) -> Iterator[tuple[fx.Node, tuple[Any, ...]]]:
    """The nodes in nested arguments, each with the keys that lead to it."""
    if isinstance(value, fx.Node):
        yield value, route
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from _leaves(item, (*route, i))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*route, key))


def _unknown(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_unknown, value))
    if isinstance(value, dict):
        return any(map(_unknown, value.values()))
    return isinstance(value, Unknown)
