"""What hangs on the parameters of a network follows when they change: the groups and the state of an optimiser."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import SnnetError
from .block import Block


class Groups:
    """The groups of an optimiser.

    Args:
        optimizer: holds parameters of the network.
        network: is grown.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
        self.optimizer, self.network = optimizer, network

    def holds(self, parameter: nn.Parameter) -> bool:
        """Whether the optimiser trains a parameter."""
        return any(parameter is own for group in self.optimizer.param_groups for own in group['params'])

    def add(self, module: nn.Module) -> None:
        """Takes in the parameters of a module that are new: to the group of its weight, or beside others like them.

        Vectors (gammas, betas, biases) go where the network's other vectors of the same learning rate are, since many
        recipes let them not decay.
        """
        weight = module.get_parameter('weight')
        own = next(group for group in self.optimizer.param_groups if any(weight is p for p in group['params']))
        known = {id(p) for group in self.optimizer.param_groups for p in group['params']}
        new = [p for p in module.parameters() if id(p) not in known and p.requires_grad]
        vectors = self._vectors_like(own, {id(p) for p in new})
        for parameter in new:
            (vectors if parameter.ndim <= 1 else own)['params'].append(parameter)

    def drop_dead(self, before: set[nn.Parameter]) -> None:
        """Forgets parameters that the network had and has no more, and what was kept for them."""
        dead = {id(p) for p in before} - {id(p) for p in self.network.parameters()}
        for group in self.optimizer.param_groups:
            group['params'][:] = [p for p in group['params'] if id(p) not in dead]
        for parameter in before:
            if id(parameter) in dead:
                self.optimizer.state.pop(parameter, None)

    def names(self) -> list[list[str | None]]:
        """The names in each group, in their order; None for what is not the network's."""
        names = {id(p): name for name, p in self.network.named_parameters()}
        return [[names.get(id(p)) for p in group['params']] for group in self.optimizer.param_groups]

    def arrange(self, saved: Sequence[Sequence[str | None]]) -> None:
        """Puts the parameters into the groups and the order that `names` gave: optimisers number what they save.

        Raises:
            SnnetError: the optimiser has other groups or other parameters.
        """
        groups = self.optimizer.param_groups
        named = dict(self.network.named_parameters())
        trained = {name for group in self.names() for name in group if name is not None}
        wanted = {name for group in saved for name in group if name is not None}
        if len(groups) != len(saved) or trained != wanted:
            odd = sorted(trained ^ wanted)[:3]
            what = f'parameters such as {", ".join(odd)}' if odd else f'{len(groups)} groups instead of {len(saved)}'
            raise SnnetError(f'the checkpoint was made with an optimiser of other groups: this one has {what}')
        for group, now, names in zip(groups, self.names(), saved, strict=True):
            others = iter([p for p, name in zip(group['params'], now, strict=True) if name is None])
            group['params'][:] = [next(others) if name is None else named[name] for name in names]

    def _vectors_like(self, own: Mapping[str, Any], new: set[int]) -> Any:
        """The group of the network's vectors that learns like `own`, or `own` itself where it has them."""
        vectors = {id(p) for p in self.network.parameters() if p.ndim <= 1 and id(p) not in new}
        alike = [
            group
            for group in self.optimizer.param_groups
            if all(group.get(rate) == own.get(rate) for rate in ('lr', 'initial_lr', 'lr_scale'))
            and any(id(p) in vectors for p in group['params'])
        ]
        return own if not alike or any(group is own for group in alike) else alike[0]


def mirror(block: Block, twin: Block) -> None:
    """Gives the block of a moving average the branches that the trained one has; its output in eval mode stays.

    New branches are copies, since a moving average begins with the value itself.
    """
    weight, bias = twin.main()
    for kind in list(twin.branches):
        if kind not in block.branches:
            more = twin.beside[kind].fold()
            weight, bias = weight + more[0], bias + more[1]
            del twin.branches[kind]
    for kind, branch in block.beside.items():
        if kind not in twin.branches:
            copied = copy.deepcopy(branch).to(twin.weight.device, twin.weight.dtype).train(twin.training)
            twin.branches[kind] = copied
            more = copied.fold()
            weight, bias = weight - more[0], bias - more[1]
    twin.set_main(weight, bias)
    twin.set_statistics(block.norm)
