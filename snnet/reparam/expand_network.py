"""Branches for a whole network at once, without a `Grower`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

from ..errors import SnnetError
from .candidates import READ_OUTSIDE, Where, check_kinds, growable, names_modules, possible_kinds
from .change_branches import add_branches, check_init
from .last_input import inputs_of
from .rep_layers import as_block
from .structure import refresh_anchors, warn_left_out
from .watch_pass import passes_of, read_outside

_log = logging.getLogger(__name__)
_Network = TypeVar('_Network', bound=nn.Module)


def expand(
    network: _Network,
    kinds: Sequence[str] | None = None,
    where: Where = None,
    *,
    init: str = 'calibrated',
    images: Tensor | None = None,
    seed: int = 0,
) -> _Network:
    """Puts branches beside the convolutions and stitch layers of a network, in place.

    Args:
        network: any module, including a single convolution.
        kinds: of branches, from `CONVOLUTION` and `STITCH`; all that the shapes allow if None.
        where: names of modules or a rule `(name, module) -> bool`; those of `candidates.grows_by_default` if None.
        init: 'calibrated' keeps the function, 'published' nearly, 'static' starts from scratch (see
            `change_branches.add_branches`).
        images: to calibrate with (N, C, H, W), and to see whether something else reads a weight; without them
            'calibrated' keeps the function in eval mode only.
        seed: of the random weights.

    Returns:
        The network.

    Raises:
        SnnetError: an unknown kind, name or initialization; a named module that can have no branches; nothing to grow.
    """
    check_kinds(kinds)
    check_init(init)
    if images is not None and not bool(images.isfinite().all()):
        raise SnnetError('images to calibrate branches with hold values that are not finite')
    found, refused = growable(network, where)
    for part, run in passes_of(network, images):
        for name in read_outside(part, run, found):
            if names_modules(where):
                raise SnnetError(f'{name} can have no branches: {READ_OUTSIDE}')
            refused[name] = READ_OUTSIDE
            del found[name]
    for name, reason in refused.items():
        _log.warning('%s gets no branches: %s', name, reason)
    if not found:
        reasons = '; '.join(f'{name}: {reason}' for name, reason in list(refused.items())[:3])
        none = 'it has no convolution (Conv2d) or stitch layer that can have branches'
        raise SnnetError(f'nothing to grow in this {type(network).__name__}: {reasons or none}')
    inputs = {} if images is None or init != 'calibrated' else inputs_of(network, found, (images,))
    for name, module in found.items():
        fitting, left_out = possible_kinds(module, kinds)
        warn_left_out(name, left_out)
        if fitting:
            add_branches(as_block(module), fitting, name=name, init=init, seed=seed, x=inputs.get(name))
    refresh_anchors(network)
    return network
