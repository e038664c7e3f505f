"""Branches for a whole network: put in place, listed, restored and folded away."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..anchors.anchor import Anchor
from ..anchors.cut import Absent
from ..errors import SnnetError
from .begin_branches import add_branches, check_init
from .block import Block, become_block, is_block
from .candidates import Where, check_kinds, growable, possible_kinds
from .fold_bias import absorb, followers
from .last_input import inputs_of

_log = logging.getLogger(__name__)
Structure = Mapping[str, Sequence[str]]
"""Kinds of branches by the name of their block; `BIAS` among them where the plain module had no bias and got one."""

BIAS = 'bias'

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
    """Puts branches beside the convolutions and stitch layers of a network, in place, once and for all.

    Args:
        network: any module; a convolution itself is one, too.
        kinds: of branches, from `CONVOLUTION` and `STITCH`; all that the shapes allow where None.
        where: names of modules or a rule `(name, module) -> bool`; those of
            `candidates.worthwhile` where None.
        init: 'calibrated' keeps the function, 'published' nearly, 'static' starts from scratch (see
            `birth.add_branches`).
        images: to calibrate with; without them 'calibrated' keeps the function in eval mode alone.
        seed: of the weights drawn.

    Returns:
        The network.

    Raises:
        SnnetError: an unknown kind, name or initialization; a named module that can have no branches; nothing to grow.
    """
    check_kinds(kinds)
    check_init(init)
    found, refused = growable(network, where)
    for name, reason in refused.items():
        _log.warning('%s gets no branches: %s', name, reason)
    if not found:
        reasons = '; '.join(f'{name}: {reason}' for name, reason in list(refused.items())[:3])
        raise SnnetError(f'nothing to grow in this {type(network).__name__}{": " if reasons else ""}{reasons}')
    inputs = {} if images is None or init != 'calibrated' else inputs_of(network, found, (images,))
    for name, module in found.items():
        fitting, left_out = possible_kinds(module, kinds)
        tell_left_out(name, left_out)
        if fitting:
            add_branches(as_block(module), fitting, name=name, init=init, seed=seed, x=inputs.get(name))
    refresh_anchors(network)
    return network


def structure_of(network: nn.Module) -> dict[str, list[str]]:
    """The kinds of branches by the name of their block, fit for JSON."""
    return {name: list(module.branches) for name, module in network.named_modules() if is_block(module)}


def restore(network: _Network, structure: Structure) -> _Network:
    """Gives a plain network the branches of another, in place; weights are to be loaded after it.

    Raises:
        SnnetError: the structure does not fit the network, or it has other branches already.
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


def _mismatch(network: nn.Module, name: str, kinds: Sequence[str]) -> str | None:
    """Why a module cannot have these branches."""
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


def fold(network: _Network, images: Tensor | None = None) -> _Network:
    """Folds all branches of a network away, in place: the plain modules again, with the same output in eval mode.

    A convolution without bias that gets one by folding passes it on to the BatchNorm behind it, where that alone takes
    its output; names and shapes are then those of the plain network. Else it keeps the bias.

    Args:
        network: any module.
        images: one or more, to find those BatchNorms with; anchors know their own size.
    """
    blocks = [module for module in network.modules() if is_block(module)]
    norms = leads(network, images) if blocks else {}
    for block in blocks:
        dissolve(block, norms.get(block))
    if blocks:
        refresh_anchors(network)
    return network


def folded(network: _Network, images: Tensor | None = None) -> _Network:
    """A folded copy of a network (see `fold`); the network itself where nothing has grown."""
    if not any(is_block(module) for module in network.modules()):
        return network
    refresh_anchors(network)
    return fold(copy.deepcopy(network), images)


def as_block(module: nn.Module) -> Block:
    """The module as a block, made one in place where it is none."""
    return module if is_block(module) else become_block(module)


def dissolve(block: Block, norm: nn.Module | None) -> bool:
    """Folds one block; the BatchNorm behind it, if any, absorbs the bias that has no place.

    Returns:
        Whether the plain module has got a bias that it did not have.
    """
    bias = block.dissolve()
    if bias is not None and norm is not None:
        with torch.no_grad():
            absorb(norm, bias)
        return False
    if bias is not None:
        give_bias(block, bias)
    return bias is not None


def give_bias(module: Any, bias: Tensor) -> None:
    """Gives a module without bias one that trains as its weight does."""
    module.bias = nn.Parameter(bias, requires_grad=module.weight.requires_grad)


def expect_biases(network: nn.Module, names: Iterable[str]) -> None:
    """Gives plain convolutions the biases that folding left in a saved state dict, for them to be loaded.

    Args:
        network: the plain network, in place.
        names: of the state dict.
    """
    modules = dict(network.named_modules())
    for name in names:
        module = modules.get(name.removesuffix('.bias'))
        if isinstance(module, nn.Conv2d) and module.bias is None:
            give_bias(module, module.weight.new_zeros(module.out_channels))


def leads(network: nn.Module, images: Tensor | None = None) -> dict[Block, nn.Module]:
    """The BatchNorm behind each block that can absorb its bias, as far as the network can be run."""
    norms: dict[Block, nn.Module] = {}
    for part, image in _runnable(network, images):
        norms |= followers(part, image)
    return norms


def tell_left_out(name: str, reasons: Mapping[str, str]) -> None:
    """Says which branches a module cannot have, and why."""
    for kind, reason in reasons.items():
        _log.warning('%s gets no branch %s: %s', name, kind, reason)


def refresh_anchors(network: nn.Module) -> None:
    """Lets anchors find their parameters anew, now that there are others; a cut one cannot run to find them."""
    for module in network.modules():
        if isinstance(module, Anchor):
            module.clear_caches()
            if not is_cut(module):
                module.__dict__.pop('survey', None)


def is_cut(anchor: Anchor) -> bool:
    """Whether parts of an anchor were cut out."""
    return any(isinstance(module, Absent) for module in anchor.modules())


def _runnable(network: nn.Module, images: Tensor | None) -> list[tuple[nn.Module, Tensor]]:
    """What can be run to see where blocks lead, each with images: whole anchors, or else the network itself."""
    anchors = [module for module in network.modules() if isinstance(module, Anchor)]
    found: list[tuple[nn.Module, Tensor]] = []
    for anchor in anchors:
        if not is_cut(anchor):
            weight = next(anchor.parameters())
            found.append((anchor, torch.zeros(1, *anchor.input_size, device=weight.device, dtype=weight.dtype)))
    return found if found or images is None else [(network, images)]
