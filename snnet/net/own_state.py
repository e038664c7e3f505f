"""Parameters of single stitches within the state dict of a net, so that they travel with the weights."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import SnnetError
from .own_parameters import OwnParameters, by_stitch
from .statistics_state import take_out

if TYPE_CHECKING:
    from .stitchable_net import StitchableNet

_log = logging.getLogger(__name__)
PREFIX = 'own_parameters.'
"""Begins the keys that are not parameters or buffers of the net."""


def carry_own_parameters(net: StitchableNet) -> None:
    """Lets the state dict of a net hold the parameters of single stitches, where there are any."""
    net.register_state_dict_post_hook(_put)  # type: ignore[no-untyped-call]  # torch does not annotate it
    net.register_load_state_dict_pre_hook(_take)  # type: ignore[no-untyped-call]  # torch does not annotate it
    net.register_load_state_dict_post_hook(_set_loaded)  # type: ignore[no-untyped-call]  # torch does not annotate it


def _put(net: StitchableNet, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """Adds the parameters behind all others."""
    if net.own_parameters is not None:
        state.update({f'{prefix}{PREFIX}{place}': value for place, value in net.own_parameters.tensors().items()})


def _take(net: StitchableNet, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Takes them out again before the weights are loaded."""
    net.loaded_own = take_out(state, f'{prefix}{PREFIX}')


def _set_loaded(net: StitchableNet, incompatible: Any) -> None:
    """After a state dict was loaded: the net has the parameters of single stitches that came with it, or none."""
    found, net.loaded_own = net.loaded_own, None
    if found is None:
        if net.own_parameters is not None:  # the net that was saved had none
            _log.warning('the state dict holds no parameters of single stitches, so the net loses its own')
            net.set_own_parameters(None)
        return
    weight = next(net.parameters())
    try:
        values = by_stitch({place: value.to(weight.device, weight.dtype, copy=True) for place, value in found.items()})
        own = OwnParameters(net, values)
    except (SnnetError, ValueError) as error:
        raise SnnetError(f'the parameters of single stitches in the state dict do not fit this net: {error}') from None
    net.set_own_parameters(own)
