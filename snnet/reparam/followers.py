"""What must follow when a network grows: its optimizer, its moving average, the other processes of a run."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import SnnetError
from ..utils.distributed import Ranks
from .block import Block
from .fold_branches import fold_blocks
from .optimizer_groups import OptimizerGroups
from .rep_layers import as_block
from .structure import BIAS, refresh_anchors

_Decision = TypeVar('_Decision')


class Followers:
    """The optimizer, the moving average and the other processes of a model that grows.

    Args:
        model: the model that grows.
        optimizer: trains it.
        ema: its moving average (timm's `ModelEmaV3`, or the network alone).
        ranks: of the run.

    Attributes:
        networks: the model and its moving average.
        biased: names of modules that have got a bias by folding.

    Raises:
        SnnetError: the model is wrapped in torch's DistributedDataParallel.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        ema: nn.Module | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise SnnetError(
                'DistributedDataParallel knows the parameters that it was made with: grow the module inside '
                '(model.module), and wrap it again after each change'
            )
        self.model, self.ranks = model, ranks
        self.groups = None if optimizer is None else OptimizerGroups(optimizer, model)
        self.average: nn.Module | None = getattr(ema, 'module', ema)
        self.networks = [model] if self.average is None else [model, self.average]
        self.biased: set[str] = set()

    def trains(self, weight: nn.Parameter) -> bool:
        """Whether the optimizer, if it is known, holds a parameter."""
        return self.groups is None or self.groups.holds(weight)

    def prepare(self, weights: Sequence[nn.Parameter]) -> None:
        """Makes sure that the optimizer has groups for what may grow beside these weights."""
        if self.groups is not None:
            self.groups.add_groups_without_decay(weights)

    def first_decision(self, decision: _Decision) -> _Decision:
        """The decision of the run's first process."""
        return decision if self.ranks is None else self.ranks.share(decision)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """After changes in a `with` block, the optimizer forgets what is gone, and anchors find what is new."""
        before = set(self.model.parameters())
        yield
        if self.groups is not None:
            self.groups.drop_removed(before)
        for network in self.networks:
            refresh_anchors(network)

    def follow(self, name: str, block: Block) -> None:
        """After a change of a block: all processes take the first one's numbers, average and optimizer its branches."""
        if self.ranks is not None:
            self.ranks.copy_first(iter(block.state_dict().values()))
        if self.average is not None:
            copy_branches(block, as_block(self.average.get_submodule(name)))
        if self.groups is not None:
            self.groups.add(block)

    def fold(self, names: Sequence[str], images: Tensor | None) -> None:
        """Makes blocks plain again, in the model and in its moving average."""
        for network in self.networks:
            weight = next(network.parameters())
            biased = fold_blocks(network, names, None if images is None else images.to(weight))
            self.biased.update(biased)
        if self.groups is not None:
            for name in names:
                self.groups.add(self.model.get_submodule(name))

    def group_names(self) -> list[list[str | None]] | None:
        """The names of the parameters in the optimizer's groups (see `OptimizerGroups.names`)."""
        return None if self.groups is None else self.groups.names()

    def restored(self, structure: Mapping[str, Sequence[str]], groups: Sequence[Sequence[str | None]] | None) -> None:
        """After a structure was restored: the optimizer gets its parameters, in the order that they had."""
        self.biased = {name for name, kinds in structure.items() if BIAS in kinds}
        if self.groups is not None:
            for name in structure:
                self.groups.add(self.model.get_submodule(name))
            if groups is not None:
                self.groups.arrange(groups)


def copy_branches(block: Block, averaged: Block) -> None:
    """Gives the block of a moving average the branches of the trained one; its output in eval mode stays.

    New branches are copies, because a moving average starts with the value itself.
    """
    weight, bias = averaged.main_kernel()
    for kind in list(averaged.branches):
        if kind not in block.branches:
            more_weight, more_bias = averaged.branch_of[kind].fold()
            weight, bias = weight + more_weight, bias + more_bias
            del averaged.branches[kind]
    for kind, branch in block.branch_of.items():
        if kind not in averaged.branches:
            copied = copy.deepcopy(branch).to(averaged.weight.device, averaged.weight.dtype).train(averaged.training)
            averaged.branches[kind] = copied
            more_weight, more_bias = copied.fold()
            weight, bias = weight - more_weight, bias - more_bias
    averaged.set_main_kernel(weight, bias)
    averaged.set_statistics(block.norm)
