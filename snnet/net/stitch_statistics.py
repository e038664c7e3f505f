"""BatchNorm statistics of every stitch: what flows through a stitch is not what flowed through its anchors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SnnetError
from ..utils.typed_json import quoted
from .joined_anchors import JoinedAnchors
from .part_tree import build_part_tree, parts_of
from .stitch_tensors import Table


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
        net: JoinedAnchors,
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

    def mixed(self, net: JoinedAnchors, stitches: Sequence[int], share: float | None = None) -> dict[str, Tensor]:
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

    def converted(self, net: JoinedAnchors, change: Callable[[Tensor], Tensor]) -> Statistics:
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

    def _by_stitch(self, net: JoinedAnchors) -> dict[int, tuple[Table, ...]]:
        norms = batch_norms(net)
        tables: dict[int, tuple[Table, ...]] = {}
        for group in self.groups:
            tree = build_part_tree(net, group.stitches)
            for stitch in group.stitches if group.share else ():
                tables[stitch] = tuple(Table() for _ in net.stitches[stitch].legs)
                self._owners[stitch] = []
                node = tree
                for leg, part in parts_of(net, stitch):
                    node = node.then[part]
                    self._owners[stitch].append(node.owner)
                    for name, value in self._places.get((node.owner, node.depth), {}).items():
                        if name not in norms or norms[name].num_features != value.shape[-1]:
                            raise SnnetError(f'the net has no BatchNorm {name} of {value.shape[-1]} channels')
                        if norms[name].get_buffer('running_mean').dtype != value.dtype:
                            raise SnnetError(f'statistics of {name} are of another type than the net, {value.dtype}')
                        table = tables[stitch][leg]
                        table.setdefault(norms[name], {'running_mean': value[0], 'running_var': value[1]})
        return tables

    def _by_place(self) -> dict[tuple[int, int], dict[str, Tensor]]:
        places: dict[tuple[int, int], dict[str, Tensor]] = {}
        for place, value in self.values.items():
            owner, depth, name = place.split('.', 2)
            sound = value.ndim == 2 and len(value) == 2 and value.is_floating_point()
            if not sound or not (value.is_meta or bool((value[1] >= 0).all())):
                raise SnnetError(f'{quoted(place)} does not hold a mean and a variance for each channel')
            places.setdefault((int(owner), int(depth)), {})[name] = value
        return places


def statistics_groups(net: JoinedAnchors, description: Mapping[str, Any]) -> list[StatisticsGroup]:
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
