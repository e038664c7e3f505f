"""Parameters of single stitches within the state dict of a net, so that they travel with the weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from ..errors import SnnetError
from .joined_anchors import JoinedAnchors
from .own_parameters import OwnParameters, by_stitch
from .results_tied_to_weights import ResultsTiedToWeights

_log = logging.getLogger(__name__)
OWN = 'own_parameters.'
"""Begins the keys that are not parameters or buffers of the net."""


def own_to_state(own: OwnParameters | None) -> dict[str, Tensor]:
    """The parameters by `own_parameters.{stitch}.{name}`; nothing where there are none."""
    return {} if own is None else {f'{OWN}{place}': value for place, value in own.tensors().items()}


def set_loaded_own(net: JoinedAnchors, known: ResultsTiedToWeights, found: Mapping[str, Tensor]) -> None:
    """Gives a net whose weights were loaded the parameters of single stitches that came with them, or none.

    Args:
        net: the net.
        known: what is known of it.
        found: the parameters by `{stitch}.{name}`.

    Raises:
        SnnetError: parameters that do not fit the net.
    """
    if not found:
        if known.verified(net).own is not None:  # the net that was saved had none
            _log.warning('the state dict holds no parameters of single stitches, so the net loses its own')
            known.set_own(net, None)
        return
    weight = next(net.parameters())
    try:
        values = by_stitch({place: value.to(weight.device, weight.dtype, copy=True) for place, value in found.items()})
        own = OwnParameters(net, values)
    except (SnnetError, ValueError) as error:
        raise SnnetError(f'the parameters of single stitches in the state dict do not fit this net: {error}') from None
    known.set_own(net, own)
