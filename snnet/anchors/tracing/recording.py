"""Records one run of a network as a torch.fx graph: every operation, every module call, every size that was read.

The network runs for real, on tensors without memory, so that whatever Python decides on the way (sizes, modes, types)
is decided as in any run. Sizes are recorded too: what is computed from them holds for other images.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from ...errors import CannotStitch
from .recorded_numbers import RecordedFloat, RecordedInt, unrecorded

_BY_VALUE = {'__bool__', 'item', 'tolist', '__int__', '__float__', '__index__', 'numpy', '__contains__', 'nonzero'}
"""Methods with which Python looks at the values of features."""
_DEFAULT = torch.float64
"""The type that a recorded network computes in. Code that uses it has read it from a tensor: nobody writes it."""


@dataclass(eq=False)
class ModuleCall:
    """One call of a module.

    Attributes:
        path: name of the module in the network.
        kind: its class.
        first, last: the nodes recorded meanwhile are `nodes[first:last]`.
        args, kwargs, output: what went in and came out, with nodes in place of tensors and sizes.
        parent: the call within which it happened.
        number: which call of the run it is.
    """

    path: str
    kind: type[nn.Module]
    first: int
    args: Any
    kwargs: Any
    parent: ModuleCall | None
    number: int
    last: int = -1
    output: Any = None


@dataclass(eq=False)
class Recording:
    """One run: nodes in the order they ran, calls in the order they began.

    A node's `meta` holds 'index', 'path' (the module whose code ran it), 'flow' (whether it depends on the pixels, not
    only on parameters and sizes), 'value' (the tensor or number) and 'wrote' (the storage of the tensor it changed).
    """

    image: fx.Node
    nodes: list[fx.Node] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    output: Any = None


def record(model: nn.Module, image: Tensor) -> Recording:
    """Runs a network on images (N, C, H, W) and records what it does.

    Args:
        model: a copy, because hooks are added for the run.
        image: the images.

    Raises:
        CannotStitch: the values of features decide what is computed.
    """
    recorder = _RunRecorder(model, image)
    hooks = []
    for path, module in model.named_modules():
        hooks += [
            module.register_forward_pre_hook(recorder.enter(path), with_kwargs=True),
            module.register_forward_hook(recorder.leave, with_kwargs=True),
        ]
    try:
        with recorder:
            recorder.found.output = recorder.described(model(image))
    finally:
        for hook in hooks:
            hook.remove()
    return recorder.found


class UnknownTensor:
    """Stands for a tensor that is neither computed nor a parameter or buffer."""


def check(result: bool, expected: bool, size: str) -> None:
    """Checks in recorded code that a comparison of sizes has the recorded result.

    Raises:
        CannotStitch: it does not.
    """
    if bool(result) is not expected:
        raise CannotStitch(f'this network takes another path on images of this size than on images of {size}')


def same(x: Tensor, *_: Any) -> Tensor:
    """Returns x: a module that does nothing, or x after something was written into it."""
    return x


class _RunRecorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.size = 'x'.join(map(str, image.shape[1:]))
        self.device = image.device
        self.found = Recording(self.graph.placeholder('x'))
        self.found.image.meta = {'path': '', 'flow': True, 'value': image, 'index': 0}
        self.found.nodes.append(self.found.image)
        self.known: dict[int, fx.Node] = {id(image): self.found.image}
        self.written: dict[int, tuple[int, fx.Node]] = {}  # by storage: when, and by which node
        self.stack: list[ModuleCall] = []
        self.asked: dict[str, fx.Node] = {}  # the tensor whose type or device was read last
        self.names = {id(t): name for name, t in chain(model.named_parameters(), model.named_buffers())}
        for path, module in model.named_modules():
            for key, value in vars(module).items():
                if isinstance(value, Tensor):
                    self.names.setdefault(id(value), f'{path}.{key}'.lstrip('.'))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, '__name__', '')
        if name == '__get__':
            return self._get(func.__self__.__name__, args[0], func)
        if name in ('size', '__len__', 'numel') and isinstance(args[0], Tensor):
            return self._sizes(name, args, kwargs)
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if name in _BY_VALUE and any(self._flows(t) for t in tensors):
            raise CannotStitch(f'the values that flow decide what {self.path or "the network"} computes ({name})')
        versions = [t._version for t in tensors]
        inputs = self.described(args), self.described(kwargs)
        out = func(*unrecorded(args), **unrecorded(kwargs))
        if not (isinstance(out, Tensor | tuple | list) or out is None):
            return out
        method = getattr(torch.Tensor, name, None) is func
        node = self._add('call_method' if method else 'call_function', name if method else func, *inputs)
        written = next((t for t, v in zip(tensors, versions, strict=True) if t._version != v), None)
        if written is not None:
            self.written[storage(written)] = len(self.found.nodes), node
            node.meta['wrote'] = storage(written)
            node.meta['flow'] |= self._flows(written)
            if out is written:
                self.known[id(out)] = node
                node.meta['value'] = out
                return out
        if isinstance(out, Tensor) and any(out is t for t in tensors):
            out = out.detach()  # a new object, which leaves the input its node
        self._learn(out, node)
        return out

    @property
    def path(self) -> str:
        """Path of the module whose code is running."""
        return self.stack[-1].path if self.stack else ''

    def enter(self, path: str) -> Callable[..., None]:
        """A hook that notes the beginning of a call."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            parent = self.stack[-1] if self.stack else None
            inputs = self.described(args), self.described(kwargs)
            call = ModuleCall(path, type(module), len(self.found.nodes), *inputs, parent, len(self.found.calls))
            self.found.calls.append(call)
            self.stack.append(call)

        return hook

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """A hook that notes the end of a call; an input that is returned unchanged gets a separate node."""
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if isinstance(output, Tensor) and any(output is t for t in given) and not self._wrote(output):
            node = self._add('call_function', same, (self.node(output),), {})
            output = output.detach()
            self._learn(output, node)
        call = self.stack.pop()
        call.output, call.last = self.described(output), len(self.found.nodes)
        return output

    def _wrote(self, tensor: Tensor) -> bool:
        """Whether the call that ends wrote into a tensor."""
        when, _ = self.written.get(storage(tensor), (-1, None))
        return when > self.stack[-1].first

    def described(self, value: Any) -> Any:
        """A value with nodes in place of tensors, sizes, and the types and devices read from tensors."""
        if isinstance(value, Tensor):
            return self.node(value)
        if isinstance(value, RecordedInt | RecordedFloat):
            return value.node
        if isinstance(value, slice):
            return slice(*map(self.described, (value.start, value.stop, value.step)))
        if isinstance(value, tuple):
            items = [self.described(v) for v in value]
            return type(value)(*items) if hasattr(value, '_fields') else tuple(items)
        if isinstance(value, list):
            return [self.described(v) for v in value]
        if isinstance(value, dict):
            return {key: self.described(v) for key, v in value.items()}
        for kind, mark, key in ((torch.dtype, _DEFAULT, 'dtype'), (torch.device, self.device, 'device')):
            if isinstance(value, kind) and value == mark:
                of = self.asked.get(key, self.found.image)
                return self._add('call_function', getattr, (of, key), {}, value=value)
        return value

    def node(self, tensor: Tensor) -> Any:
        """The node that computed a tensor, or fetched it from the network."""
        if id(tensor) not in self.known:
            if id(tensor) not in self.names:
                return UnknownTensor()
            self._learn(tensor, self._add('get_attr', self.names[id(tensor)], (), {}))
        node = self.known[id(tensor)]
        when, writer = self.written.get(storage(tensor), (-1, node))
        if writer is not node and when > node.meta['index']:
            node = self._add('call_function', same, (node, writer), {})
            self._learn(tensor, node)
        return node

    def number(self, target: Any, args: Any, value: Any) -> Any:
        """A node that computes a number from sizes; comparisons are checked in every run."""
        if isinstance(value, bool):
            node = self._add('call_function', target, self.described(args), {}, value=value)
            self._add('call_function', check, (node, value, self.size), {}, value=value)
            return value
        if not isinstance(value, int | float):
            return value
        node = self._add('call_function', target, self.described(args), {}, value=value)
        made: Any = RecordedInt(value) if isinstance(value, int) else RecordedFloat(value)
        made.node, made.recorder = node, self
        return made

    def _flows(self, tensor: Tensor) -> bool:
        return id(tensor) in self.known and bool(self.known[id(tensor)].meta['flow'])

    def _get(self, name: str, tensor: Tensor, getter: Any) -> Any:
        if name == 'shape':
            return self._sizes('size', (tensor,), {})
        value = getter(tensor)
        if name in ('device', 'dtype') and isinstance(node := self.node(tensor), fx.Node):
            self.asked[name] = node
        elif isinstance(value, Tensor):
            self._learn(value, self._add('call_function', getattr, (self.node(tensor), name), {}))
        return value

    def _sizes(self, name: str, args: Any, kwargs: Any) -> Any:
        tensor = args[0]
        if isinstance(tensor, nn.Parameter) or id(tensor) not in self.known:
            return getattr(Tensor, name)(*unrecorded(args), **kwargs)  # fixed, whatever flows
        node = self.node(tensor)
        if name == '__len__':
            return len(tensor) if self.number(operator.eq, (self._size(tensor, node, 0), len(tensor)), True) else 0
        if name == 'numel':
            return math.prod((self._size(tensor, node, i) for i in range(tensor.ndim)), start=1)
        asked = args[1:] or tuple(kwargs.values())
        if asked and asked[0] is not None:
            return self._size(tensor, node, int(asked[0]) % tensor.ndim)
        return torch.Size([self._size(tensor, node, i) for i in range(tensor.ndim)])

    def _size(self, tensor: Tensor, node: fx.Node, axis: int) -> Any:
        with torch._C.DisableTorchFunction():
            value = int(tensor.shape[axis])
        return self.number(Tensor.size, (node, axis), value)

    def _learn(self, value: Any, node: fx.Node) -> None:
        if isinstance(value, Tensor):
            self.known[id(value)] = node
            node.meta['value'] = value  # kept alive, so no other tensor gets its id
        elif isinstance(value, tuple | list):
            node.meta['value'] = value
            for i, item in enumerate(value):
                if isinstance(item, Tensor | tuple | list):
                    self._learn(item, self._add('call_function', operator.getitem, (node, i), {}))

    def _add(self, op: str, target: Any, args: Any, kwargs: Any, value: Any = None) -> fx.Node:
        if op == 'call_function' and target is Tensor.size:
            op, target = 'call_method', 'size'
        node = self.graph.create_node(op, target, args, kwargs)
        tensors = value is None
        flow = tensors and any(n.meta['flow'] for n in node.all_input_nodes)
        node.meta = {'path': self.path, 'flow': flow, 'value': value, 'index': len(self.found.nodes)}
        self.found.nodes.append(node)
        return node


def storage(tensor: Tensor) -> int:
    """Identifies the memory that a tensor uses."""
    with torch._C.DisableTorchFunction():
        return int(tensor.untyped_storage()._cdata)
