"""Parameters of single stitches, in place of those that stitch layers and anchors hold for all stitches."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import SnnetError
from ..reparam import folded
from ..utils.digest import digest_of_tensors
from ..utils.typed_json import quoted
from .joined_anchors import JoinedAnchors
from .stitch_tensors import Table

_PLACE = re.compile(r'(?P<stitch>0|[1-9][0-9]{0,8})\.(?P<name>.+)')
"""One name for each parameter, so that none stands in for another in silence."""


class OwnParameters:
    """Parameters that belong to single stitches; everything else of a net, its anchors above all, stays as it is.

    A stitch runs with its own parameters in eval mode. They lie in its stitch layers and in the legs behind them, so
    no anchor by itself ever runs any of them, and fronts stay the same for all stitches.

    Args:
        net: whose stitches they belong to.
        values: by stitch and name of the parameter that they stand in for (see `StitchableNet.parameter_names`).

    Raises:
        SnnetError: a parameter that the net does not have, that does not lie behind a join of the stitch, or that has
            another shape or type; or a net whose branches or low-rank updates are not merged yet.
        UnknownStitch: no such id.
    """

    def __init__(self, net: JoinedAnchors, values: Mapping[int, Mapping[str, Tensor]]) -> None:
        self.values = {net.checked(i): dict(sorted(values[i].items())) for i in sorted(values) if values[i]}
        if self.values:
            check_merged(net)
        places = _places(net) if self.values else {}
        self._tables = {stitch: _tables(net, stitch, own, places) for stitch, own in self.values.items()}

    @property
    def stitches(self) -> list[int]:
        """Ids of the stitches that have parameters of their own."""
        return list(self.values)

    def count(self, stitch: int | None = None) -> int:
        """Number of own parameters of a stitch, or of all stitches together: what they add to the storage."""
        chosen = self.values.values() if stitch is None else [self.values.get(stitch, {})]
        return sum(tensor.numel() for own in chosen for tensor in own.values())

    def tables(self, stitch: int) -> tuple[Table, ...] | None:
        """One table per leg of a stitch (a stitch layer belongs to the leg behind it); None where it has none."""
        return self._tables.get(stitch)

    def tensors(self) -> dict[str, Tensor]:
        """All parameters by `{stitch}.{name}`, as they are stored."""
        return {f'{stitch}.{name}': tensor for stitch, own in self.values.items() for name, tensor in own.items()}

    def converted(self, net: JoinedAnchors, change: Callable[[Tensor], Tensor]) -> OwnParameters:
        """The parameters on another device or in another type, for a net that was moved there."""
        changed = {i: {name: change(tensor) for name, tensor in own.items()} for i, own in self.values.items()}
        return OwnParameters(net, changed)

    def digest(self) -> str:
        """Tells parameters apart, by their bytes."""
        return digest_of_tensors(self.tensors())

    def description(self) -> dict[str, Any]:
        """What config.json says of them beside the file that holds the values."""
        return {'stitches': self.stitches, 'count': self.count()}


def check_merged(net: JoinedAnchors) -> None:
    """Refuses a net whose parameters are not yet those of the modules that run.

    Raises:
        SnnetError: it has branches or low-rank updates.
    """
    if folded(net) is not net or any(net.layer(i).down is not None for i in _layers(net)):
        raise SnnetError(
            'stitches of a net with branches or low-rank updates have no own parameters: fold or merge these first'
        )


def by_stitch(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The values of `OwnParameters` from its `tensors`.

    Raises:
        ValueError: a name that does not begin with the id of a stitch.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for place, tensor in tensors.items():
        match = _PLACE.fullmatch(place)
        if match is None:
            raise ValueError(f'{quoted(place)} does not begin with the id of a stitch')
        found.setdefault(int(match['stitch']), {})[match['name']] = tensor
    return found


def names_behind(net: JoinedAnchors, stitch: int) -> list[frozenset[str]]:
    """Names of the parameters that a stitch may have for itself, by leg; none for the first one."""
    chosen = net.stitches[stitch]
    found: list[frozenset[str]] = [frozenset()]
    for layer, leg in zip(chosen.layers, chosen.legs[1:], strict=True):
        anchor = net.anchor(leg.anchor)
        prefix = f'anchors.{list(net.anchors).index(anchor)}.model.'
        used = {f'{prefix}{name}' for name in anchor.parameter_names(leg.start, leg.stop)}
        found.append(frozenset(used | {f'stitch_layers.{layer}.weight', f'stitch_layers.{layer}.bias'}))
    return found


def _layers(net: JoinedAnchors) -> range:
    return range(len(net.stitch_layers))


def _places(net: JoinedAnchors) -> dict[str, tuple[nn.Module, str, Tensor]]:
    """Module, name within it, and tensor of each parameter of a net, by its whole name."""
    return {
        f'{prefix}.{name}': (module, name, parameter)
        for prefix, module in net.named_modules(remove_duplicate=False)
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def _tables(
    net: JoinedAnchors, stitch: int, own: Mapping[str, Tensor], places: Mapping[str, tuple[nn.Module, str, Tensor]]
) -> tuple[Table, ...]:
    legs = names_behind(net, stitch)
    tables = tuple(Table() for _ in legs)
    for name, tensor in own.items():
        where = [leg for leg, names in enumerate(legs) if name in names]
        if not where:
            raise SnnetError(f'stitch {stitch} ({net.stitches[stitch]}) has no parameter {name} behind a join')
        module, leaf, held = places[name]
        if held.shape != tensor.shape:
            found, expected = ('x'.join(map(str, t.shape)) for t in (tensor, held))
            raise SnnetError(f'{name} of stitch {stitch} is {found}, but the net has {expected} there')
        if held.dtype != tensor.dtype:
            found, expected = (str(t.dtype).removeprefix('torch.') for t in (tensor, held))
            raise SnnetError(f'{name} of stitch {stitch} is of type {found}, but the net has {expected} there')
        for leg in where:
            tables[leg].setdefault(module, {})[leaf] = tensor
    return tables
