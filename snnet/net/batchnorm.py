"""BatchNorm statistics of every stitch: what flows through a stitch is not what flowed through its anchors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import SnnetError
from .part_tree import build_part_tree, parts_of

if TYPE_CHECKING:
    from .stitchable_net import StitchableNet

Table = dict[nn.Module, tuple[Tensor, Tensor]]
"""Mean and variance of some BatchNorms."""

_current: ContextVar[Table | None] = ContextVar('table of BatchNorm statistics', default=None)
"""What the BatchNorms of this thread use just now; a context variable, so that threads run different stitches."""


@contextmanager
def normalizing_with(table: Table | None) -> Iterator[None]:
    """Lets the BatchNorms in a table use its statistics within a `with` block, and the others their own."""
    token = _current.set(table)
    try:
        yield
    finally:
        _current.reset(token)


def batch_norms(net: nn.Module) -> dict[str, nn.Module]:
    """The modules that normalize with running statistics, by name."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    found = {name: module for name, module in net.named_modules() if isinstance(module, kinds)}
    return {name: module for name, module in found.items() if module.running_mean is not None}


class Statistics:
    """Mean and variance at every BatchNorm of every recalibrated stitch.

    A value belongs to a place in the tree of parts, so stitches that run the same parts up to a BatchNorm share it.

    Args:
        net: whose stitches they are.
        values: tensors (2, channels) of mean and variance by place, `{owner}.{depth}.{name of the BatchNorm}` (see
            `parts.PartNode`).
        stitches: the recalibrated ones.
        samples: how many images were used.

    Raises:
        SnnetError: a value belongs to no BatchNorm of the net.
    """

    def __init__(self, net: StitchableNet, values: Mapping[str, Tensor], stitches: Sequence[int], samples: int) -> None:
        self.values, self.stitches, self.samples = dict(values), sorted(stitches), samples
        self._tables = self._by_stitch(net)

    def tables(self, stitch: int) -> tuple[Table, ...] | None:
        """One table a leg of a stitch; None where it was not recalibrated, so that it uses the anchors' statistics."""
        return self._tables.get(stitch)

    def attach(self) -> None:
        """Lets the BatchNorms that have statistics look them up; they keep their parameters, buffers and names."""
        attach(module for tables in self._tables.values() for table in tables for module in table)

    def converted(self, net: StitchableNet, change: Callable[[Tensor], Tensor]) -> Statistics:
        """The statistics on another device or in another type, for a net that was moved there."""
        values = {place: change(value) for place, value in self.values.items()}
        return Statistics(net, values, self.stitches, self.samples)

    def digest(self) -> str:
        """Tells statistics apart, by their bytes."""
        digest = hashlib.sha256()
        for place, value in sorted(self.values.items()):
            digest.update(place.encode() + value.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _by_stitch(self, net: StitchableNet) -> dict[int, tuple[Table, ...]]:
        norms, places = batch_norms(net), self._by_place()
        tree = build_part_tree(net, self.stitches)
        tables: dict[int, tuple[Table, ...]] = {}
        for stitch in self.stitches:
            tables[stitch] = tuple({} for _ in net.stitches[stitch].legs)
            node = tree
            for leg, part in parts_of(net, stitch):
                node = node.then[part]
                for name, pair in places.get((node.owner, node.depth), {}).items():
                    if name not in norms or norms[name].num_features != len(pair[0]):
                        raise SnnetError(f'the net has no BatchNorm {name} of {len(pair[0])} channels')
                    tables[stitch][leg].setdefault(norms[name], pair)
        return tables

    def _by_place(self) -> dict[tuple[int, int], dict[str, tuple[Tensor, Tensor]]]:
        places: dict[tuple[int, int], dict[str, tuple[Tensor, Tensor]]] = {}
        for place, value in self.values.items():
            owner, depth, name = place.split('.', 2)
            places.setdefault((int(owner), int(depth)), {})[name] = (value[0], value[1])
        return places


def attach(modules: Iterable[nn.Module]) -> None:
    """Lets BatchNorms look for their statistics in the table of `normalizing_with` first."""
    for module in modules:
        kind: Any = type(module)
        if not hasattr(kind, '_plain'):
            module.__class__ = _looking_up(kind)


def detach(network: nn.Module) -> None:
    """Makes every BatchNorm of a network an ordinary one again."""
    for module in network.modules():
        module.__class__ = getattr(type(module), '_plain', type(module))


def bake(anchor: nn.Module, twin: nn.Module, table: Table) -> None:
    """Writes the statistics of an anchor's BatchNorms into the ordinary buffers of its copy."""
    with torch.no_grad():
        for name, module in anchor.named_modules():
            if module in table:
                copied = twin.get_submodule(name)
                for buffer, value in zip(('running_mean', 'running_var'), table[module], strict=True):
                    copied.get_buffer(buffer).copy_(value)
    detach(twin)


@cache
def _looking_up(plain: Any) -> Any:
    """A subclass of a BatchNorm that prefers the statistics of the current table, except in train mode."""

    def buffer(name: str, index: int) -> property:
        def get(self: nn.Module) -> Tensor | None:
            table = _current.get()
            if table is None or self.training or self not in table:
                return self._buffers[name]
            return table[self][index]

        return property(get)

    members = {
        '_plain': plain,
        '__module__': plain.__module__,
        '__qualname__': plain.__qualname__,
        '__reduce_ex__': lambda self, protocol: (_rebuild, (plain,), self.__dict__),
        'running_mean': buffer('running_mean', 0),
        'running_var': buffer('running_var', 1),
    }
    return type(plain.__name__, (plain,), members)


def _rebuild(plain: Any) -> nn.Module:
    """For copies and pickles: a subclass made at run time has no name to be found by."""
    made = _looking_up(plain)
    return made.__new__(made)
