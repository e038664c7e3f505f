"""BatchNorm statistics of stitches within the state dict of a net, so that they travel with the weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import SnnetError
from .joined_anchors import JoinedAnchors
from .results_tied_to_weights import ResultsTiedToWeights
from .stitch_statistics import Statistics, statistics_groups

_log = logging.getLogger(__name__)
STATISTICS = 'statistics.'
"""Begins the keys that are not parameters or buffers of the net."""


def statistics_to_state(statistics: Statistics | None) -> dict[str, Tensor]:
    """Values, groups of stitches and numbers of images, as tensors; nothing where there are no statistics."""
    if statistics is None:
        return {}
    state = {f'{STATISTICS}values.{place}': value for place, value in statistics.values.items()}
    state[f'{STATISTICS}samples'] = torch.tensor(statistics.samples)
    state[f'{STATISTICS}held_out'] = torch.tensor(statistics.held_out)
    for i, group in enumerate(statistics.groups):
        state[f'{STATISTICS}groups.{i}.share'] = torch.tensor(group.share, dtype=torch.float64)
        state[f'{STATISTICS}groups.{i}.stitches'] = torch.tensor(group.stitches)
    return state


def set_loaded_statistics(net: JoinedAnchors, known: ResultsTiedToWeights, found: Mapping[str, Tensor]) -> None:
    """Gives a net whose weights were loaded the statistics that came with them, or none.

    Args:
        net: the net.
        known: what is known of it.
        found: what `statistics_to_state` gave, without the beginning of the keys.

    Raises:
        SnnetError: statistics that do not fit the net.
    """
    if not found:
        if known.verified(net).statistics is not None:  # the net that was saved had none
            _log.warning('the state dict holds no BatchNorm statistics of stitches, so the net loses its own')
            known.set_statistics(net, None)
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
    known.set_statistics(net, None)
    known.set_statistics(net, statistics)
