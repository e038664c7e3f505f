"""Branches are added to a block and cut from it, without a change of what it computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import SnnetError
from ..utils.seeds import generator
from .batch_norm_algebra import running_statistics, scale_and_shift, set_running_statistics
from .block import Block, make_branch
from .branch import Branch

_NEW_SCALE = 0.01
"""What a new branch puts out, relative to the main branch."""

INITS = ('calibrated', 'published', 'static')


def add_branches(
    block: Block, kinds: Sequence[str], *, name: str, init: str, seed: int, turn: int = 0, x: Tensor | None = None
) -> None:
    """Gives a block branches.

    'calibrated' keeps the function and its scale: the BatchNorms start with the statistics of `x`, the main branch's
    undoes them (gamma = sqrt(sigma^2 + eps), beta = mu), a new branch's gamma is 0.01 sigma, and what the new branches
    compute is subtracted from the main kernel. Without `x` the function is kept in eval mode only. 'published' does
    the same with mean 0, variance 1, gamma 1 for the main branch and 0.01 for new ones, so it is off by the
    BatchNorm's eps in eval mode and changes the scale in train mode. 'static' subtracts nothing and sets every
    BatchNorm to mean 0, variance 1 and gamma 1: for a network that is trained from scratch with all its branches.

    Args:
        block: the block to change.
        kinds: of the new branches.
        name: of the block, which its random weights depend on.
        init: one of `INITS`.
        seed: of the random weights.
        turn: number of the interval; each draws other weights.
        x: an input of the block as a map (N, in, H, W).
    """
    branches = {kind: make_branch(block, kind, generator(seed, f'branch {kind} of {name}', turn)) for kind in kinds}
    if init == 'static':
        block.norm.reset_parameters()
    elif init == 'published':
        _start_as_published(block, branches)
    else:
        _start_calibrated(block, branches, x)
    for kind, branch in branches.items():
        block.branches[kind] = branch


def cut_branches(block: Block, kinds: Sequence[str], x: Tensor | None = None) -> None:
    """Removes branches and adds what they compute in eval mode to the main kernel.

    Args:
        block: the block to change.
        kinds: of the branches to remove.
        x: an input of the block (N, in, H, W), for the statistics of its main branch.
    """
    weight, bias = block.main_kernel()
    for kind in kinds:
        more_weight, more_bias = block.branch_of[kind].fold()
        weight, bias = weight + more_weight, bias + more_bias
        del block.branches[kind]
    block.set_main_kernel(weight, bias, x)


def check_init(init: str) -> None:
    """Checks the name of an initialization.

    Raises:
        SnnetError: it does not exist.
    """
    if init not in INITS:
        raise SnnetError(f"init must be {', '.join(INITS[:-1])} or {INITS[-1]}, not '{init}'")


def _start_calibrated(block: Block, branches: dict[str, Branch], x: Tensor | None) -> None:
    weight, bias = block.main_kernel()
    if x is None:
        sigma = torch.ones_like(bias)
    else:
        block.set_main_kernel(weight, bias, x)
        scale, _ = scale_and_shift(block.norm)
        _, var = running_statistics(block.norm)
        sigma = scale.abs() * var.sqrt()  # deviation of what the main branch puts out (out)
    with torch.no_grad():
        for branch in branches.values():
            if x is not None:
                training = branch.training
                branch.eval().calibrate(x)
                branch.train(training)
            branch.norm.weight.copy_(_NEW_SCALE * sigma)
            more_weight, more_bias = branch.fold()
            weight, bias = weight - more_weight, bias - more_bias
    block.set_main_kernel(weight, bias, x)


def _start_as_published(block: Block, branches: dict[str, Branch]) -> None:
    weight, bias = block.main_kernel()
    with torch.no_grad():
        set_running_statistics(block.norm, torch.zeros_like(bias), torch.ones_like(bias))
        for branch in branches.values():
            branch.norm.weight.fill_(_NEW_SCALE)
            more_weight, more_bias = branch.fold()
            weight, bias = weight - more_weight, bias - more_bias
        block.weight.copy_(weight.view_as(block.weight))
        block.norm.weight.fill_(1)
        block.norm.bias.copy_(bias)
