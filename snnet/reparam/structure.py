"""Which branches a network has: listed, and put back into a plain network before its weights are loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from ..anchors.anchor import Anchor
from ..errors import SnnetError
from .block import is_block
from .candidates import growable, possible_kinds
from .change_branches import add_branches
from .rep_layers import as_block
from .watch_pass import is_cut

_log = logging.getLogger(__name__)
Structure = Mapping[str, Sequence[str]]
"""Kinds of branches by the name of their block; `BIAS` among them if the plain module had no bias and got one."""

BIAS = 'bias'

_Network = TypeVar('_Network', bound=nn.Module)


def structure_of(network: nn.Module) -> dict[str, list[str]]:
    """The kinds of branches by the name of their block, fit for JSON."""
    return {name: list(module.branches) for name, module in network.named_modules() if is_block(module)}


def restore(network: _Network, structure: Structure) -> _Network:
    """Gives a plain network the branches of another one, in place; load its weights afterwards.

    Raises:
        SnnetError: the structure does not fit the network, or the network already has other branches.
    """
    present = structure_of(network)
    if present:
        if present != {name: kinds for name in structure if (kinds := _branches(structure[name]))}:
            raise SnnetError(
                f'the structure does not match the network: {next(iter(present))} has other branches (fold them first)'
            )
        return network
    modules = dict(network.named_modules())
    for name, wanted in structure.items():
        if (reason := _mismatch(network, name, wanted)) is not None:
            raise SnnetError(f'the structure does not match the network: {reason}')
    for name, wanted in structure.items():
        module: Any = modules[name]
        if BIAS in wanted and module.bias is None:
            give_bias(module, module.weight.new_zeros(len(module.weight)))
        if kinds := _branches(wanted):
            add_branches(as_block(module), kinds, name=name, init='static', seed=0)
    refresh_anchors(network)
    return network


def expect_biases(network: nn.Module, names: Iterable[str]) -> None:
    """Gives plain convolutions the biases that folding left in a saved state dict, so that it can be loaded.

    Args:
        network: the plain network, changed in place.
        names: of the state dict.
    """
    modules = dict(network.named_modules())
    for name in names:
        module = modules.get(name.removesuffix('.bias'))
        if isinstance(module, nn.Conv2d) and module.bias is None:
            give_bias(module, module.weight.new_zeros(module.out_channels))


def give_bias(module: Any, bias: Tensor) -> None:
    """Gives a module without bias one (out) that is trained if its weight is."""
    module.bias = nn.Parameter(bias, requires_grad=module.weight.requires_grad)


def refresh_anchors(network: nn.Module) -> None:
    """Makes anchors look up their parameters again, after there were changes."""
    for module in network.modules():
        if isinstance(module, Anchor):
            module.clear_caches()
            if not is_cut(module):  # a cut anchor cannot run to find them
                module.forget_survey()


def warn_left_out(name: str, reasons: Mapping[str, str]) -> None:
    """Says in the log which branches a module cannot have, and why."""
    for kind, reason in reasons.items():
        _log.warning('%s gets no branch %s: %s', name, kind, reason)


def _mismatch(network: nn.Module, name: str, kinds: Sequence[str]) -> str | None:
    """Why a module cannot have these branches; None if it can."""
    modules = dict(network.named_modules())
    if name not in modules:
        return f"there is no module '{name}'"
    found, refused = growable(network, lambda other, _: other == name)
    if name not in found:
        return f'{name} can have no branches{": " if refused else ""}{refused.get(name, "")}'
    fitting, left_out = possible_kinds(modules[name], _branches(kinds))
    for kind in _branches(kinds):
        if kind not in fitting:
            return f'{name} can have no branch {kind!r}{": " if kind in left_out else ""}{left_out.get(kind, "")}'
    return None


def _branches(kinds: Sequence[str]) -> list[str]:
    return [kind for kind in kinds if kind != BIAS]
