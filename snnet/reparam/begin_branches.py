"""How branches begin: initializations, and what an input says of the statistics that their BatchNorms start with."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import SnnetError
from ..utils.seeds import generator
from .block import Block, make_branch
from .branches import Branch, affine, exact, statistics_of

_log = logging.getLogger(__name__)
_GAIN = 0.01
"""What a new branch puts out, relative to the main branch."""

INITS = ('calibrated', 'published', 'static')


def add_branches(
    block: Block, kinds: Sequence[str], *, name: str, init: str, seed: int, turn: int = 0, x: Tensor | None = None
) -> None:
    """Gives a block branches.

    'calibrated' keeps the function and its scale: the BatchNorms start with the statistics of `x`, the main branch's
    undoes them (gamma = sqrt(sigma^2 + eps), beta = mu), a new branch's gamma is 0.01 sigma, and what the new branches
    compute is taken away from the main kernel. Without `x` the function is kept in eval mode alone. 'published' does
    the same with mean 0, variance 1, gamma 1 for the main branch and 0.01 for new ones, so it errs by the BatchNorm's
    eps in eval mode and changes the scale in train mode. 'static' takes nothing away and sets every BatchNorm to
    mean 0, variance 1 and gamma 1: a network that is to be trained from scratch with all its branches.

    Args:
        block: gets them.
        kinds: of the branches.
        name: of the block, for its draws.
        init: one of `INITS`.
        seed: of the draws.
        turn: of the draws, apart from other turns.
        x: an input of the block as a map (N, in, H, W).
    """
    branches = {kind: make_branch(block, kind, generator(seed, f'branch {kind} of {name}', turn)) for kind in kinds}
    if init == 'static':
        block.norm.reset_parameters()
    elif init == 'published':
        _published(block, branches)
    else:
        _calibrated(block, branches, x)
    for kind, branch in branches.items():
        block.branches[kind] = branch


def cut_branches(block: Block, kinds: Sequence[str], x: Tensor | None = None) -> None:
    """Takes branches away and adds what they compute in eval mode to the main kernel.

    Args:
        block: loses them.
        kinds: of the branches.
        x: an input of the block, for the statistics of its main branch.
    """
    weight, bias = block.main()
    for kind in kinds:
        more = block.beside[kind].fold()
        weight, bias = weight + more[0], bias + more[1]
        del block.branches[kind]
    block.set_main(weight, bias, x)


def check_init(init: str) -> None:
    """Refuses an initialization that does not exist.

    Raises:
        SnnetError: names those that there are.
    """
    if init not in INITS:
        raise SnnetError(f"branches begin {', '.join(INITS[:-1])} or {INITS[-1]}, not '{init}'")


def _calibrated(block: Block, branches: dict[str, Branch], x: Tensor | None) -> None:
    weight, bias = block.main()
    if x is None:
        sigma = torch.ones_like(bias)
    else:
        with torch.no_grad():
            block.set_main(weight, bias, x)
            scale, _ = affine(block.norm)
            sigma = scale.abs() * exact(block.norm.get_buffer('running_var')).sqrt()
    for branch in branches.values():
        with torch.no_grad():
            if x is not None:
                training = branch.training
                branch.eval().calibrate(x)
                branch.train(training)
            branch.norm.weight.copy_(_GAIN * sigma)
        more = branch.fold()
        weight, bias = weight - more[0], bias - more[1]
    block.set_main(weight, bias, x)


def _published(block: Block, branches: dict[str, Branch]) -> None:
    weight, bias = block.main()
    with torch.no_grad():
        statistics_of(block.norm, torch.zeros_like(bias), torch.ones_like(bias))
        for branch in branches.values():
            branch.norm.weight.fill_(_GAIN)
            more = branch.fold()
            weight, bias = weight - more[0], bias - more[1]
        block.weight.copy_(weight.view_as(block.weight))
        block.norm.weight.fill_(1)
        block.norm.bias.copy_(bias)
