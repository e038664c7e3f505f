"""Training with branches that grow: which convolution gets them, which are cut, and everything that must follow."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..distributed import Ranks
from ..errors import InvalidBudget, SnnetError
from .birth import add_branches, check_init, cut_branches
from .block import Block, is_block
from .candidates import Where, check_kinds, growable, possible_kinds
from .meter import Meter
from .scores import Scores
from .structure import BIAS, as_block, dissolve, inputs_of, leads, refresh_anchors, restore, structure_of
from .surgery import Groups, mirror

_log = logging.getLogger(__name__)
_SPREAD, _LEAST = 0.02, 0.1
FORMAT = 1


class Change(NamedTuple):
    """What happened to one module at the end of an interval.

    Attributes:
        interval: its number, from 1.
        name: of the module.
        added, cut: kinds of branches.
    """

    interval: int
    name: str
    added: tuple[str, ...]
    cut: tuple[str, ...]


class Grower:
    """Grows branches beside the convolutions of a network while it is trained (DyRep).

    Call `observe` after each backward pass and `step` after each step of the optimiser (or once an epoch). Every
    `every` calls of `step` an interval ends: weak branches are cut, then the best-scored module gets branches, and
    neither changes what the network computes. `fold` ends it: the plain network again.

    Args:
        model: is trained; its last input in train mode calibrates new branches.
        every: calls of `step` an interval.
        score: one of `SCORES` (see `scores.Scores`).
        cut: 'published' cuts, where the importances of a block's branches spread (standard deviation) by more than
            0.02, those below their mean and below 0.1; a number cuts those below it; None cuts nothing. Importance is
            mean |gamma| of the branch's last BatchNorm relative to the main branch's.
        budget: most multiply-adds an image of all convolutions and linear layers of the growing network, each counted
            once; an interval then grows as many modules as fit, by score. Without it, one.
        kinds: of branches; all that the shapes allow where None.
        where: names of modules or a rule `(name, module) -> bool`; convolutions with more than one tap and stitch
            layers where None.
        init: how branches begin, 'calibrated' or 'published' (see `birth.add_branches`).
        seed: of every draw.
        optimizer: trains the model; its groups and state follow.
        ema: a moving average of the model (timm's `ModelEmaV3` or its network); it follows.
        scaler: of the gradients in mixed precision, where they are scaled when `observe` is called.
        ranks: of a run of many processes; all take the first one's decisions and new branches.

    Attributes:
        history: every change so far.

    Raises:
        SnnetError: an interval below one, nothing to grow, an unknown score, kind or rule, or a model in torch's
            DistributedDataParallel.
        InvalidBudget: a budget that is no positive number.
    """

    def __init__(
        self,
        model: nn.Module,
        every: int,
        score: str = 'snip',
        cut: str | float | None = 'published',
        budget: float | None = None,
        kinds: Sequence[str] | None = None,
        where: Where = None,
        init: str = 'calibrated',
        seed: int = 0,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        ema: nn.Module | None = None,
        scaler: torch.amp.GradScaler | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        _check(model, every, cut, budget)
        check_kinds(kinds)
        check_init(init)
        self.model, self.every, self.cut, self.budget = model, every, cut, budget
        self.kinds, self.init, self.seed = kinds, init, seed
        self.groups = None if optimizer is None else Groups(optimizer, model)
        self.ema: nn.Module | None = getattr(ema, 'module', ema)
        self.scaler, self.ranks = scaler, ranks
        self.scores = Scores(score, seed)
        self.history: list[Change] = []
        self._modules = self._growable(where)
        self._biased: set[str] = set()
        self._calls, self._observed, self._folded = 0, False, False
        self._last: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.meter = Meter(model)
        self._handle = self._watch()

    @property
    def flops(self) -> int:
        """Multiply-adds an image of all convolutions and linear layers seen so far, with their branches."""
        return self.meter.total()

    @property
    def structure(self) -> dict[str, list[str]]:
        """What `restore` needs: kinds of branches by name, and 'bias' where folding left one."""
        found = {name: [BIAS] for name in sorted(self._biased)}
        for name, kinds in structure_of(self.model).items():
            found[name] = found.get(name, []) + kinds
        return found

    def observe(self, loss: Tensor | None = None) -> None:
        """Adds the scores of a batch, after its backward pass and before the gradients are cleared.

        Args:
            loss: for the score 'grasp', with its graph: before `backward`, or after `backward(retain_graph=True)`.

        Raises:
            SnnetError: the network is folded, or 'grasp' has no loss.
        """
        self._refuse_folded()
        scale = None if self.scaler is None or not self.scaler.is_enabled() else self.scaler.get_scale()
        self.scores.observe(self._modules, loss, scale)
        self._observed = True

    def step(self, images: Tensor | None = None) -> list[Change]:
        """Counts, and cuts and grows where an interval ends.

        Args:
            images: to calibrate new branches with; the model's last input in train mode where None.

        Returns:
            The changes; whoever keeps lists of the model's parameters (a wrapper such as torch's
            DistributedDataParallel, say) makes them anew where there are any.

        Raises:
            SnnetError: the network is folded, nothing was observed, or a score is not a number.
        """
        self._refuse_folded()
        self._calls += 1
        if self._calls % self.every:
            return []
        if images is not None:
            self._last = (images,), {}
        interval = self._calls // self.every
        weak, chosen = self._decided(interval)
        before = set(self.model.parameters())
        inputs = self._inputs([*weak, *chosen])
        changes = [self._cut(name, kinds, inputs.get(name), interval) for name, kinds in weak.items()]
        changes += [self._grow(name, kinds, inputs.get(name), interval) for name, kinds in chosen.items()]
        if changes:
            self._settle(before)
            _log.info('interval %d: %s; %.4g multiply-adds an image', interval, _told(changes), self.flops)
        self.history += changes
        self.scores.clear()
        self._observed = False
        return changes

    def fold(self) -> nn.Module:
        """Ends growing: the model (and its moving average) is plain again, with the same output in eval mode.

        Returns:
            The model.

        Raises:
            SnnetError: it is folded already.
        """
        self._refuse_folded()
        before = set(self.model.parameters())
        self._dissolve([name for name, module in self._modules.items() if is_block(module)])
        self._settle(before)
        self._folded = True
        self._handle.remove()
        self.meter.stop()
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Structure, scores and counts, fit for JSON; weights are the model's, moments the optimiser's."""
        return {
            'format': FORMAT,
            'calls': self._calls,
            'observed': self._observed,
            'folded': self._folded,
            'structure': self.structure,
            'scores': self.scores.values(),
            'grids': self.meter.state(),
            'history': [[change.interval, change.name, [*change.added], [*change.cut]] for change in self.history],
            'groups': None if self.groups is None else self.groups.names(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a state: structure first. The weights and the optimiser's moments are to be loaded after it.

        Raises:
            SnnetError: no such state, or a structure that does not match the model.
        """
        if state.get('format') != FORMAT:
            raise SnnetError(f'this is no state of a Grower in format {FORMAT}, but {state.get("format")}')
        for network in [self.model] if self.ema is None else [self.model, self.ema]:
            restore(network, state['structure'])
        self._biased = {name for name, kinds in state['structure'].items() if BIAS in kinds}
        if self.groups is not None:
            for name in state['structure']:
                self.groups.add(self.model.get_submodule(name))
            if state['groups'] is not None:
                self.groups.arrange(state['groups'])
        self._calls, self._observed, self._folded = state['calls'], state['observed'], state['folded']
        self.scores.load(state['scores'], self._modules)
        self.meter.load(state['grids'])
        self.history = [Change(i, name, tuple(added), tuple(cut)) for i, name, added, cut in state['history']]

    def _growable(self, where: Where) -> dict[str, nn.Module]:
        """What may grow and is trained.

        Raises:
            SnnetError: nothing is.
        """
        found, refused = growable(self.model, where)
        for name, module in list(found.items()):
            weight = module.get_parameter('weight')
            if not weight.requires_grad:
                refused[name] = 'its weight is frozen'
            elif self.groups is not None and not self.groups.holds(weight):
                refused[name] = 'the optimiser does not hold its weight'
        for name, reason in refused.items():
            _log.warning('%s gets no branches: %s', name, reason)
        modules = {name: module for name, module in found.items() if name not in refused}
        if not modules:
            reasons = '; '.join(f'{name}: {reason}' for name, reason in list(refused.items())[:3])
            raise SnnetError(
                f'nothing to grow in this {type(self.model).__name__}: it has no trained convolution or stitch layer '
                f'that can have branches{f" ({reasons})" if reasons else ""}'
            )
        for name, module in modules.items():
            for kind, reason in possible_kinds(module, self.kinds)[1].items():
                _log.info('%s will get no branch %s: %s', name, kind, reason)
        return modules

    def _watch(self) -> Any:
        """Keeps the model's last input in train mode."""

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is self.model and module.training:  # copies of the model have copies of this hook
                self._last = args, kwargs

        return self.model.register_forward_pre_hook(note, with_kwargs=True)

    def _decided(self, interval: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The branches to cut and those to grow, by name."""
        blocks = {name: module for name, module in self._modules.items() if is_block(module)}
        weak = {name: kinds for name, block in blocks.items() if (kinds := _weak(block.importances(), self.cut))}
        open_ = {
            name: kinds
            for name, module in self._modules.items()
            if name not in weak and name in self.meter.grids and (kinds := possible_kinds(module, self.kinds)[0])
        }
        if open_ and not self._observed:
            raise SnnetError('no gradient was observed in this interval: call grower.observe() after backward')
        ranked = self.scores.ranked(list(open_), interval)
        decided = weak, {name: open_[name] for name in self._within_budget(ranked, open_)}
        if not decided[1]:
            _log.info('interval %d: nothing to grow', interval)
        return decided if self.ranks is None else self.ranks.share(decided)

    def _within_budget(self, ranked: list[str], kinds: Mapping[str, list[str]]) -> list[str]:
        if self.budget is None:
            return ranked[:1]
        room, chosen = self.budget - self.flops, []
        for name in ranked:
            if (extra := self.meter.extra(name, kinds[name])) <= room:
                room -= extra
                chosen.append(name)
        return chosen

    def _inputs(self, names: list[str]) -> dict[str, Tensor]:
        """What the model's last input makes of the inputs of some modules."""
        if not names or self._last is None:
            found = {}
        else:
            args, kwargs = self._last
            found = inputs_of(self.model, names, args, kwargs)
            for name in names:  # of a StitchableNet whose last stitch ran elsewhere
                stitch = self._stitch_with(name) if name not in found and isinstance(args[0], Tensor) else None
                if stitch is not None:
                    found |= inputs_of(self.model, [name], args[:1], {'stitch': stitch})
        for name in names:
            if name not in found:
                _log.warning('%s is not calibrated: the last input of the model in train mode did not reach it', name)
        return found

    def _stitch_with(self, name: str) -> int | None:
        net: Any = self.model
        stitches = range(len(getattr(net, 'stitches', ())))
        return next((stitch for stitch in stitches if f'{name}.weight' in net.parameter_names(stitch)), None)

    def _grow(self, name: str, kinds: list[str], x: Tensor | None, interval: int) -> Change:
        block = as_block(self._modules[name])
        add_branches(block, kinds, name=name, init=self.init, seed=self.seed, turn=interval, x=x)
        self._follow(name, block)
        return Change(interval, name, tuple(kinds), ())

    def _cut(self, name: str, kinds: list[str], x: Tensor | None, interval: int) -> Change:
        block = as_block(self._modules[name])
        cut_branches(block, kinds, x)
        self._follow(name, block)
        if not block.branches:
            self._dissolve([name])
        return Change(interval, name, (), tuple(kinds))

    def _follow(self, name: str, block: Block) -> None:
        """Takes the first process's numbers, and lets the moving average and the optimiser have the same branches."""
        if self.ranks is not None:
            self.ranks.copy_first(iter(block.state_dict().values()))
        if self.ema is not None:
            mirror(block, as_block(self.ema.get_submodule(name)))
        if self.groups is not None:
            self.groups.add(block)

    def _dissolve(self, names: list[str]) -> None:
        """Makes modules plain again, in the model and in its moving average."""
        args = self._last[0] if self._last is not None else ()
        images = args[0][:2] if len(args) == 1 and isinstance(args[0], Tensor) else None
        for network in [self.model] if self.ema is None else [self.model, self.ema]:
            weight = next(network.parameters())
            norms = leads(network, None if images is None else images.to(weight.device))
            for name in names:
                block = network.get_submodule(name)
                if is_block(block) and dissolve(block, norms.get(block)):
                    self._biased.add(name)
        if self.groups is not None:
            for name in names:
                self.groups.add(self._modules[name])

    def _settle(self, before: set[nn.Parameter]) -> None:
        if self.groups is not None:
            self.groups.drop_dead(before)
        for network in [self.model] if self.ema is None else [self.model, self.ema]:
            refresh_anchors(network)

    def _refuse_folded(self) -> None:
        if self._folded:
            raise SnnetError('the network is folded: to grow it again, make a new Grower')


def _weak(importances: Mapping[str, float], cut: str | float | None) -> list[str]:
    """The branches to cut."""
    if cut is None or not importances:
        return []
    if not isinstance(cut, str):
        return [kind for kind, value in importances.items() if value < cut]
    mean = math.fsum(importances.values()) / len(importances)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in importances.values()) / len(importances))
    return [kind for kind, value in importances.items() if spread > _SPREAD and value < min(mean, _LEAST)]


def _check(model: nn.Module, every: int, cut: str | float | None, budget: float | None) -> None:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise SnnetError(
            'DistributedDataParallel knows the parameters that it was made with: grow the module inside '
            '(model.module), and wrap it anew after each change'
        )
    if not isinstance(every, int) or every < 1:
        raise SnnetError(f'an interval is at least one step, not {every!r}')
    if isinstance(cut, str) and cut != 'published':
        raise SnnetError(f"branches are cut by the rule 'published', below a number, or never (None), not '{cut}'")
    if budget is not None and not (budget > 0 and math.isfinite(budget)):
        raise InvalidBudget(f'a budget is a positive number of multiply-adds, not {budget!r}')


def _told(changes: Sequence[Change]) -> str:
    parts = [f'{c.name} +{" +".join(c.added)}' if c.added else f'{c.name} -{" -".join(c.cut)}' for c in changes]
    return ', '.join(parts)
