"""Modules that compute with other tensors while a certain stitch runs: its own in place of those they hold."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class Table(dict[nn.Module, dict[str, Tensor]]):
    """Tensors of some modules, by the names under which the modules hold theirs.

    Attributes:
        twins: copies of blocks that hold the tensors of this table, by block and whether any of these
            tensors requires a gradient (see `twin_of`).
    """

    twins: dict[tuple[nn.Module, bool], nn.Module]

    def __getstate__(self) -> None:
        """Copies and pickles leave the twins behind."""
        return None


_current: ContextVar[Table | None] = ContextVar('tensors of the stitch that runs', default=None)
"""What the modules of this thread use just now; a context variable, so that threads run different stitches."""


@contextmanager
def computing_with(table: Table | None) -> Iterator[None]:
    """Lets the modules in a table use its tensors within a `with` block, and the others their own."""
    token = _current.set(table)
    try:
        yield
    finally:
        _current.reset(token)


def joined(tables: Iterable[Mapping[nn.Module, Mapping[str, Tensor]]]) -> Table:
    """One table with the tensors of several; of equal names the last counts."""
    found = Table()
    for table in tables:
        for module, tensors in table.items():
            found[module] = {**found.get(module, {}), **tensors}
    return found


def attach(modules: Iterable[nn.Module]) -> None:
    """Lets modules look for their tensors in the table of `computing_with` first, except in train mode.

    They keep their parameters, buffers and names.
    """
    for module in modules:
        kind: Any = type(module)
        if not hasattr(kind, '_plain'):
            held = [*module._parameters.items(), *module._buffers.items()]
            module.__class__ = _looking_up(kind, tuple(name for name, tensor in held if tensor is not None))


def detach(network: nn.Module) -> None:
    """Makes every module of a network an ordinary one again."""
    for module in network.modules():
        module.__class__ = getattr(type(module), '_plain', type(module))


def write_into_copy(original: nn.Module, twin: nn.Module, table: Table) -> None:
    """Writes the tensors of a table into a copy of a network, and makes its modules ordinary ones.

    Args:
        original: whose modules the table knows.
        twin: the copy, which may lack modules.
        table: what to write.
    """
    copies = dict(twin.named_modules(remove_duplicate=False))
    with torch.no_grad():
        for name, module in original.named_modules():
            for leaf, value in table.get(module, {}).items():
                copied = copies[name]
                held = copied._parameters[leaf] if leaf in copied._parameters else copied._buffers[leaf]
                assert held is not None
                held.copy_(value)
    detach(twin)


def twin_of(block: nn.Module) -> nn.Module:
    """A copy of a block that holds the tensors of the current table itself; the block, where the table has none for it.

    For compilers: they see ordinary modules, and one graph fits all of them. Other tensors are shared with the block.
    Tensors that require a gradient are held as they are, so that they get it; that takes graphs of other inputs.
    """
    table = _current.get()
    if not table or block.training or not any(module in table for module in block.modules()):
        return block
    twins: dict[tuple[nn.Module, bool], nn.Module] = vars(table).setdefault('twins', {})
    key = block, any(tensor.requires_grad for module in block.modules() for tensor in table.get(module, {}).values())
    if key not in twins:
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*block.parameters(), *block.buffers())}
        twin = copy.deepcopy(block, shared)
        for module, copied in zip(block.modules(), twin.modules(), strict=True):
            for name, tensor in table.get(module, {}).items():
                held = module._parameters.get(name)
                if held is not None:
                    kept: Any = tensor if tensor.requires_grad else nn.Parameter(tensor, held.requires_grad)
                    copied._parameters[name] = kept
                else:
                    copied._buffers[name] = tensor
        detach(twin)
        twins[key] = twin
    return twins[key]


@cache
def _looking_up(plain: Any, names: tuple[str, ...]) -> Any:
    """A subclass of a module's class that prefers the tensors of the current table for these names."""

    def tensor(name: str) -> property:
        def get(self: nn.Module) -> Any:
            table = _current.get()
            if table is None or self.training or self not in table or name not in table[self]:
                return self._parameters[name] if name in self._parameters else self._buffers[name]
            return table[self][name]

        return property(get)

    members = {
        '_plain': plain,
        '__module__': plain.__module__,
        '__qualname__': plain.__qualname__,
        '__reduce_ex__': lambda self, protocol: (_rebuild, (plain, names), self.__dict__),
        **{name: tensor(name) for name in names},
    }
    return type(plain.__name__, (plain,), members)


def _rebuild(plain: Any, names: tuple[str, ...]) -> nn.Module:
    """For copies and pickles: a subclass made at run time has no name to be found by."""
    made = _looking_up(plain, names)
    module: nn.Module = made.__new__(made)
    return module
