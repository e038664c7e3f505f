"""BatchNorm statistics of every stitch: what flows through a stitch is not what flowed through its anchors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
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


@dataclass(frozen=True)
class StatisticsGroup:
    """Stitches that normalize with the same share of statistics of their own.

    Attributes:
        share: of their own statistics, from 0 to 1; the rest is that of the anchors' statistics.
        stitches: ids, in ascending order.
    """

    share: float
    stitches: tuple[int, ...]


class Statistics:
    """Mean and variance at every BatchNorm of every recalibrated stitch.

    A value belongs to a place in the tree of parts of a group, so stitches of one group that run the same parts up to
    a BatchNorm share it.

    Args:
        net: whose stitches they are.
        values: tensors (2, channels) of mean and variance by place, `{owner}.{depth}.{name of the BatchNorm}` (see
            `part_tree.PartNode`).
        groups: the recalibrated stitches; the values of a group of share 0 are not needed.
        samples: number of images that the statistics were measured on.
        held_out: number of other images that the shares were chosen by.

    Raises:
        SnnetError: a value belongs to no BatchNorm of the net, or a stitch is in two groups.
    """

    def __init__(
        self,
        net: StitchableNet,
        values: Mapping[str, Tensor],
        groups: Sequence[StatisticsGroup],
        samples: int,
        held_out: int = 0,
    ) -> None:
        self.values, self.groups, self.samples, self.held_out = dict(values), tuple(groups), samples, held_out
        self.shares = {stitch: group.share for group in self.groups for stitch in group.stitches}
        if len(self.shares) != sum(len(group.stitches) for group in self.groups):
            raise SnnetError('each stitch has one share of BatchNorm statistics, but one is listed twice')
        self._places = self._by_place()
        self._owners: dict[int, list[int]] = {}
        self._tables = self._by_stitch(net)

    @property
    def stitches(self) -> list[int]:
        """Ids of the stitches that were recalibrated, those included whose own statistics did not help."""
        return sorted(self.shares)

    def tables(self, stitch: int) -> tuple[Table, ...] | None:
        """One table per leg of a stitch; None where it normalizes with the anchors' statistics alone."""
        return self._tables.get(stitch)

    def alike(self, stitches: Iterable[int]) -> list[list[int]]:
        """Those of some stitches that have statistics of their own, in lists that share values along shared parts."""
        chosen = set(stitches)
        lists = [[i for i in group.stitches if i in chosen and i in self._tables] for group in self.groups]
        return [listed for listed in lists if listed]

    def mixed(self, net: StitchableNet, stitches: Sequence[int], share: float | None = None) -> dict[str, Tensor]:
        """Values of a group of some stitches of one group of ours.

        Args:
            net: whose stitches they are.
            stitches: ids, in ascending order.
            share: mixes (1 - share) of the anchors' statistics in; None leaves the values as they are.
        """
        norms = batch_norms(net)
        found: dict[str, Tensor] = {}
        for node in build_part_tree(net, stitches).walk():
            place = self._owners[node.owner][node.depth], node.depth
            for name, value in self._places.get(place, {}).items():
                if share is not None and share != 1:
                    old = torch.stack([norms[name].get_buffer('running_mean'), norms[name].get_buffer('running_var')])
                    value = old + share * (value - old)
                found[f'{node.owner}.{node.depth}.{name}'] = value
        return found

    def attach(self) -> None:
        """Lets the BatchNorms that have statistics look them up; they keep their parameters, buffers and names."""
        attach(module for tables in self._tables.values() for table in tables for module in table)

    def converted(self, net: StitchableNet, change: Callable[[Tensor], Tensor]) -> Statistics:
        """The statistics on another device or in another type, for a net that was moved there."""
        values = {place: change(value) for place, value in self.values.items()}
        return Statistics(net, values, self.groups, self.samples, self.held_out)

    def digest(self) -> str:
        """Tells statistics apart, by their bytes."""
        digest = hashlib.sha256()
        for place, value in sorted(self.values.items()):
            digest.update(place.encode() + value.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def description(self) -> dict[str, Any]:
        """What config.json says of the statistics beside the file that holds the values."""
        groups = [{'share': group.share, 'stitches': list(group.stitches)} for group in self.groups]
        return {'samples': self.samples, 'held_out': self.held_out, 'stitches': self.stitches, 'groups': groups}

    def _by_stitch(self, net: StitchableNet) -> dict[int, tuple[Table, ...]]:
        norms = batch_norms(net)
        tables: dict[int, tuple[Table, ...]] = {}
        for group in self.groups:
            tree = build_part_tree(net, group.stitches)
            for stitch in group.stitches if group.share else ():
                tables[stitch] = tuple({} for _ in net.stitches[stitch].legs)
                self._owners[stitch] = []
                node = tree
                for leg, part in parts_of(net, stitch):
                    node = node.then[part]
                    self._owners[stitch].append(node.owner)
                    for name, value in self._places.get((node.owner, node.depth), {}).items():
                        if name not in norms or norms[name].num_features != value.shape[-1]:
                            raise SnnetError(f'the net has no BatchNorm {name} of {value.shape[-1]} channels')
                        tables[stitch][leg].setdefault(norms[name], (value[0], value[1]))
        return tables

    def _by_place(self) -> dict[tuple[int, int], dict[str, Tensor]]:
        places: dict[tuple[int, int], dict[str, Tensor]] = {}
        for place, value in self.values.items():
            owner, depth, name = place.split('.', 2)
            places.setdefault((int(owner), int(depth)), {})[name] = value
        return places


def statistics_groups(net: StitchableNet, description: Mapping[str, Any]) -> list[StatisticsGroup]:
    """The groups in what `Statistics.description` gave; before there were groups, all stitches had a share of 1.

    Raises:
        SnnetError: a stitch that the net does not have, or a share that is not between 0 and 1.
    """
    listed = description.get('groups')
    if listed is None:
        listed = [{'share': 1.0, 'stitches': description['stitches']}]
    groups = []
    for group in listed:
        share = float(group['share'])
        if not 0 <= share <= 1:
            raise SnnetError(f'a share of BatchNorm statistics lies between 0 and 1, not {share}')
        groups.append(StatisticsGroup(share, tuple(sorted(net.checked(i) for i in group['stitches']))))
    return groups


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
    module: nn.Module = made.__new__(made)
    return module
