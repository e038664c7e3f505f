"""Branches fold away: the plain modules again, with the same output in eval mode."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import SnnetError
from .block import Block, is_block
from .structure import give_bias, refresh_anchors
from .watch_pass import absorb_bias, absorbing_norms, output_of, passes_of, read_outside

_Network = TypeVar('_Network', bound=nn.Module)


def fold(network: _Network, images: Tensor | None = None) -> _Network:
    """Folds all branches of a network away, in place: the plain modules again, with the same output in eval mode.

    If a convolution without bias gets one by folding, the BatchNorm behind it absorbs it if nothing else reads the
    convolution's output; names and shapes are then those of the plain network. Otherwise the convolution keeps it.
    Where the network can be run, its outputs before and after are compared.

    Args:
        network: any module.
        images: one or more (N, C, H, W), to find those BatchNorms and to compare outputs; anchors need none.

    Raises:
        SnnetError: folding would change the output, because something else reads a weight. Nothing has changed then.
    """
    names = {name: module for name, module in network.named_modules() if is_block(module)}
    fold_blocks(network, list(names), images)
    return network


def folded(network: _Network, images: Tensor | None = None) -> _Network:
    """A folded copy of a network (see `fold`), or the network itself if it has no branches."""
    if not any(is_block(module) for module in network.modules()):
        return network
    refresh_anchors(network)
    return fold(copy.deepcopy(network), images)


def fold_blocks(network: nn.Module, names: Sequence[str], images: Tensor | None = None) -> list[str]:
    """Folds some blocks of a network, in place.

    Args:
        network: has the blocks.
        names: of the blocks.
        images: as for `fold`.

    Returns:
        Names of those that have got a bias that the plain module does not have.

    Raises:
        SnnetError: as for `fold`.
    """
    blocks = {name: module for name in names if is_block(module := network.get_submodule(name))}
    if not blocks:
        return []
    parts = passes_of(network, images)
    norms: dict[Block, nn.Module] = {}
    for part, run in parts:
        outside = read_outside(part, run, blocks)
        if outside:
            raise SnnetError(f'{min(outside)} cannot be folded: something else reads its weight, too')
        norms |= absorbing_norms(part, run)
    before = [output_of(part, run) for part, run in parts]
    again = [output_of(part, run) for part, run in parts]
    with _undone_on_error(blocks, norms):
        biased = [name for name, block in blocks.items() if fold_block(block, norms.get(block))]
        refresh_anchors(network)
        for (part, run), old, repeated in zip(parts, before, again, strict=True):
            error, tolerance = _distance(output_of(part, run), old), _tolerance(old)
            if error > tolerance and _distance(repeated, old) == 0:
                raise SnnetError(
                    f'folding would change the output by {error:.2g} of its norm (up to {tolerance:.2g} is rounding): '
                    f'something else reads the weights of what has grown'
                )
    return biased


def fold_block(block: Block, norm: nn.Module | None) -> bool:
    """Folds one block.

    Args:
        block: to fold, in place.
        norm: the BatchNorm behind it, if that can absorb a bias.

    Returns:
        Whether the plain module has got a bias that it did not have.
    """
    bias = block.become_plain()
    if bias is None:
        return False
    if norm is not None:
        with torch.no_grad():
            absorb_bias(norm, bias)
        return False
    give_bias(block, bias)
    return True


@contextmanager
def _undone_on_error(blocks: dict[str, Block], norms: dict[Block, nn.Module]) -> Iterator[None]:
    """Gives blocks their branches back if a `with` block fails."""
    kept = []
    for block in blocks.values():
        bias = block.bias
        values = block.weight.detach().clone(), None if bias is None else bias.detach().clone()
        kept.append((block, type(block), bias, values, (block.norm, block.branches, block.window)))
    means = [(norm, norm.get_buffer('running_mean').clone()) for norm in norms.values()]
    try:
        yield
    except Exception:
        with torch.no_grad():
            for block, kind, bias, (weight, old_bias), (norm, branches, window) in kept:
                block.__class__ = kind
                block.norm, block.branches, block.window = norm, branches, window
                block.weight.copy_(weight)
                block.bias = bias
                if bias is not None:
                    bias.copy_(old_bias)
            for follower, mean in means:
                follower.get_buffer('running_mean').copy_(mean)
        raise


def _distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest relative difference of two lists of tensors; 0 where the wanted ones are not finite."""
    errors = [
        float((a - b).double().norm() / b.double().norm().clamp(min=1e-30))
        for a, b in zip(found, wanted, strict=True)
        if b.is_floating_point() and bool(b.isfinite().all())
    ]
    return max(errors, default=0.0)


def _tolerance(outputs: list[Tensor]) -> float:
    """How far rounding may move an output: deep networks lose up to three quarters of the digits of their type."""
    kinds: list[float] = [torch.finfo(output.dtype).eps for output in outputs if output.is_floating_point()]
    return math.sqrt(math.sqrt(max(kinds, default=0.0)))
