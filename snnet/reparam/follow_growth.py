"""What must follow when a network grows: optimizer, moving average, the other processes of a run."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import SnnetError
from ..utils.distributed import Ranks
from .block import Block, is_block
from .structure import BIAS, as_block, dissolve, leads, refresh_anchors

_Thing = TypeVar('_Thing')


class Attached:
    """What must follow when a model grows: its optimizer, its moving average, the other processes of a run.

    Args:
        model: grows.
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
                '(model.module), and wrap it anew after each change'
            )
        self.model, self.ranks = model, ranks
        self.groups = None if optimizer is None else Groups(optimizer, model)
        self.average: nn.Module | None = getattr(ema, 'module', ema)
        self.networks = [model] if self.average is None else [model, self.average]
        self.biased: set[str] = set()

    def trains(self, weight: nn.Parameter) -> bool:
        """Whether the optimizer, if it is known, holds a parameter."""
        return self.groups is None or self.groups.holds(weight)

    def agreed(self, decision: _Thing) -> _Thing:
        """The first process's decision."""
        return decision if self.ranks is None else self.ranks.share(decision)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Lets the optimizer forget what is gone after a `with` block, and anchors find what is new."""
        before = set(self.model.parameters())
        yield
        if self.groups is not None:
            self.groups.drop_dead(before)
        for network in self.networks:
            refresh_anchors(network)

    def follow(self, name: str, block: Block) -> None:
        """After a change of a block: the first process's numbers, and the same branches for average and optimizer."""
        if self.ranks is not None:
            self.ranks.copy_first(iter(block.state_dict().values()))
        if self.average is not None:
            mirror(block, as_block(self.average.get_submodule(name)))
        if self.groups is not None:
            self.groups.add(block)

    def dissolve(self, names: Sequence[str], images: Tensor | None) -> None:
        """Makes blocks plain again, in the model and in its moving average."""
        for network in self.networks:
            weight = next(network.parameters())
            norms = leads(network, None if images is None else images.to(weight))
            for name in names:
                block = network.get_submodule(name)
                if is_block(block) and dissolve(block, norms.get(block)):
                    self.biased.add(name)
        if self.groups is not None:
            for name in names:
                self.groups.add(self.model.get_submodule(name))

    def names(self) -> list[list[str | None]] | None:
        """The names in the optimizer's groups (see `Groups.names`)."""
        return None if self.groups is None else self.groups.names()

    def restored(self, structure: Mapping[str, Sequence[str]], groups: Sequence[Sequence[str | None]] | None) -> None:
        """After a structure was restored: the optimizer has its parameters, in the order that they had."""
        self.biased = {name for name, kinds in structure.items() if BIAS in kinds}
        if self.groups is not None:
            for name in structure:
                self.groups.add(self.model.get_submodule(name))
            if groups is not None:
                self.groups.arrange(groups)


class Groups:
    """The groups of an optimizer.

    Args:
        optimizer: holds parameters of the network.
        network: is grown.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
        self.optimizer, self.network = optimizer, network

    def holds(self, parameter: nn.Parameter) -> bool:
        """Whether the optimizer trains a parameter."""
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
        """Puts the parameters into the groups and the order that `names` gave: optimizers number what they save.

        Raises:
            SnnetError: the optimizer has other groups or other parameters.
        """
        groups = self.optimizer.param_groups
        if len(groups) != len(saved):
            raise SnnetError(f'the checkpoint is of an optimizer of {len(saved)} groups, this one has {len(groups)}')
        named = dict(self.network.named_parameters())
        trained, wanted = ({name for group in of for name in group if name} for of in (self.names(), saved))
        if trained != wanted:
            odd = ', '.join(sorted(trained ^ wanted)[:3])
            raise SnnetError(f'the checkpoint is of an optimizer of other parameters: they differ in {odd}')
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
