"""The parameter groups of an optimizer whose network grows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import SnnetError

_log = logging.getLogger(__name__)
_RATES = ('lr', 'initial_lr', 'lr_scale')
"""What makes up the learning rate of a group, in torch's and timm's words."""


class OptimizerGroups:
    """Adds the parameters of new branches to an optimizer, and removes those of branches that are gone.

    Kernels join the group of the weight beside which they grow. Vectors (gammas, betas, biases) join a group of the
    same learning rate without weight decay.

    Args:
        optimizer: holds parameters of the network.
        network: the network that grows.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
        self.optimizer, self.network = optimizer, network

    def holds(self, parameter: nn.Parameter) -> bool:
        """Whether the optimizer trains a parameter."""
        return any(parameter is own for group in self.optimizer.param_groups for own in group['params'])

    def add_groups_without_decay(self, weights: Sequence[nn.Parameter]) -> None:
        """Adds an empty group without weight decay for each learning rate of these weights that has none.

        Schedulers know the groups that there are when they are made, so after that nothing is added.
        """
        for group in [self._group_of(weight) for weight in weights]:
            if self._without_decay(group) is not None:
                continue
            if 'initial_lr' in group:
                _log.warning(
                    'gammas and betas of new branches decay like weights: the scheduler was made before the Grower, '
                    'and the optimizer has no group without weight decay at this learning rate'
                )
                return
            options = {name: value for name, value in group.items() if name != 'params'}
            self.optimizer.add_param_group({**options, 'params': [], 'weight_decay': 0.0})

    def add(self, module: nn.Module) -> None:
        """Takes in the parameters of a module that are new."""
        own = self._group_of(module.get_parameter('weight'))
        known = {id(p) for group in self.optimizer.param_groups for p in group['params']}
        for parameter in module.parameters():
            if id(parameter) not in known and parameter.requires_grad:
                vectors = self._without_decay(own) if parameter.ndim <= 1 else None
                (vectors or own)['params'].append(parameter)

    def drop_removed(self, before: set[nn.Parameter]) -> None:
        """Forgets parameters that the network had before and has lost, with what was kept for them."""
        removed = {id(p) for p in before} - {id(p) for p in self.network.parameters()}
        for group in self.optimizer.param_groups:
            group['params'][:] = [p for p in group['params'] if id(p) not in removed]
        for parameter in before:
            if id(parameter) in removed:
                self.optimizer.state.pop(parameter, None)

    def names(self) -> list[list[str | None]]:
        """The names in each group, in their order; None for a parameter that is not the network's."""
        names = {id(p): name for name, p in self.network.named_parameters()}
        return [[names.get(id(p)) for p in group['params']] for group in self.optimizer.param_groups]

    def arrange(self, saved: Sequence[Sequence[str | None]]) -> None:
        """Puts the parameters into the groups and the order that `names` gave: optimizers number what they save.

        Raises:
            SnnetError: the optimizer has other groups or other parameters.
        """
        groups = self.optimizer.param_groups
        if len(groups) != len(saved):
            raise SnnetError(
                f'the checkpoint has an optimizer with {len(saved)} parameter groups, this one has {len(groups)}'
            )
        named = dict(self.network.named_parameters())
        trained, wanted = ({name for group in of for name in group if name} for of in (self.names(), saved))
        if trained != wanted:
            odd = ', '.join(sorted(trained ^ wanted)[:3])
            raise SnnetError(f'the checkpoint has an optimizer of other parameters: they differ in {odd}')
        for group, now, names in zip(groups, self.names(), saved, strict=True):
            others = iter([p for p, name in zip(group['params'], now, strict=True) if name is None])
            group['params'][:] = [next(others) if name is None else named[name] for name in names]

    def _group_of(self, weight: nn.Parameter) -> dict[str, Any]:
        return next(group for group in self.optimizer.param_groups if any(weight is p for p in group['params']))

    def _without_decay(self, own: Mapping[str, Any]) -> dict[str, Any] | None:
        """A group that learns like `own` and does not decay; None if there is none."""
        alike = [
            group
            for group in self.optimizer.param_groups
            if all(group.get(rate) == own.get(rate) for rate in _RATES) and not group.get('weight_decay')
        ]
        with_vectors = [group for group in alike if any(p.ndim <= 1 for p in group['params'])]
        return next(iter([*with_vectors, *alike]), None)
