"""BatchNorm statistics of stitches within the state dict of a net, so that they travel with the weights."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import SnnetError
from .batchnorm import Statistics, statistics_groups

if TYPE_CHECKING:
    from .stitchable_net import StitchableNet

_log = logging.getLogger(__name__)
PREFIX = 'statistics.'
"""Begins the keys that are not parameters or buffers of the net."""


def carry_statistics(net: StitchableNet) -> None:
    """Lets the state dict of a net hold the BatchNorm statistics of its stitches, where there are any."""
    net.register_state_dict_post_hook(_put_statistics)  # type: ignore[no-untyped-call]  # torch does not annotate it
    net.register_load_state_dict_pre_hook(_take_statistics)  # type: ignore[no-untyped-call]  # torch does not annotate it
    net.register_load_state_dict_post_hook(_set_loaded_statistics)  # type: ignore[no-untyped-call]  # torch does not annotate it


def _put_statistics(net: StitchableNet, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """Adds values, groups of stitches and numbers of images, as tensors, behind all others."""
    statistics = net.statistics
    if statistics is not None:
        state.update({f'{prefix}{PREFIX}values.{place}': value for place, value in statistics.values.items()})
        state[f'{prefix}{PREFIX}samples'] = torch.tensor(statistics.samples)
        state[f'{prefix}{PREFIX}held_out'] = torch.tensor(statistics.held_out)
        for i, group in enumerate(statistics.groups):
            state[f'{prefix}{PREFIX}groups.{i}.share'] = torch.tensor(group.share, dtype=torch.float64)
            state[f'{prefix}{PREFIX}groups.{i}.stitches'] = torch.tensor(group.stitches)


def _take_statistics(net: StitchableNet, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Takes them out again before the weights are loaded."""
    net.loaded_statistics = take_out(state, f'{prefix}{PREFIX}')


def take_out(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor] | None:
    """Removes the tensors with a prefix from a state dict and returns them without it; None where there are none."""
    names = [name for name in state if name.startswith(prefix)]
    return {name.removeprefix(prefix): state.pop(name) for name in names} or None


def _set_loaded_statistics(net: StitchableNet, incompatible: Any) -> None:
    """After a state dict was loaded: the net has the statistics that came with it, or none."""
    found, net.loaded_statistics = net.loaded_statistics, None
    if found is None:
        if net.statistics is not None:  # as whoever saved the state dict had none
            _log.warning('the state dict holds no BatchNorm statistics of stitches, so the net loses its own')
            net.set_statistics(None)
        return
    try:
        weight = next(net.parameters())
        prefix = 'values.'
        values = {
            name.removeprefix(prefix): value.to(weight.device, weight.dtype)
            for name, value in found.items()
            if name.startswith(prefix)
        }
        count = sum(name.startswith('groups.') for name in found) // 2
        listed = [(found[f'groups.{i}.share'], found[f'groups.{i}.stitches']) for i in range(count)]
        described = {'groups': [{'share': float(share), 'stitches': ids.tolist()} for share, ids in listed]}
        groups = statistics_groups(net, described)
        statistics = Statistics(net, values, groups, int(found['samples']), int(found['held_out']))
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise SnnetError(f'the BatchNorm statistics in the state dict do not fit this net: {error}') from None
    net.set_statistics(None)
    net.set_statistics(statistics)
