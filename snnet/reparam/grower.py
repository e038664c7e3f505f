"""Training with branches that grow: which convolution gets them, which are cut, and everything that must follow."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import SnnetError
from ..utils.distributed import Ranks
from .begin_branches import add_branches, check_init, cut_branches
from .block import is_block
from .candidates import Where, check_kinds, growable, possible_kinds
from .flops_meter import Meter
from .follow_growth import Attached
from .growth_rules import Cut, check_rules, weak, within_budget
from .last_input import LastInput
from .scores import Scores
from .structure import BIAS, as_block, restore, structure_of, tell_left_out

_log = logging.getLogger(__name__)
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

    Call `observe` after each backward pass and `step` after each step of the optimizer (or once an epoch). Every
    `every` calls of `step` an interval ends: weak branches are cut, then the best-scored module gets branches, and
    neither changes what the network computes. `fold` ends it: the plain network again.

    Args:
        model: is trained; its last input in train mode calibrates new branches.
        every: calls of `step` an interval; None where nothing grows but by `grow_all`.
        score: one of `SCORES` (see `scores.Scores`).
        cut: 'published' cuts, where the importances of a block's branches spread (standard deviation) by more than
            0.02, those below their mean and below 0.1; a number cuts those below it; None cuts nothing. Importance is
            mean |gamma| of the branch's last BatchNorm relative to the main branch's.
        budget: most multiply-adds an image of all convolutions and linear layers of the growing network, each counted
            once; an interval then grows as many modules as fit, by score. Without it, one.
        kinds: of branches; all that the shapes allow where None.
        where: names of modules or a rule `(name, module) -> bool`; those of
            `candidates.worthwhile` where None.
        init: how branches begin, 'calibrated', 'published' or 'static' (see `birth.add_branches`).
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
        every: int | None,
        score: str = 'snip',
        cut: Cut = 'published',
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
        check_rules(every, cut, budget)
        check_kinds(kinds)
        check_init(init)
        self.model, self.every, self.cut, self.budget = model, every, cut, budget
        self.kinds, self.init, self.seed, self.scaler = kinds, init, seed, scaler
        self.attached = Attached(model, optimizer, ema, ranks)
        self.scores = Scores(score, seed)
        self.history: list[Change] = []
        self._modules = self._growable(where)
        self._calls, self._observed, self._folded = 0, False, False
        self.meter, self._last = Meter(model), LastInput(model)

    @property
    def flops(self) -> int:
        """Multiply-adds an image of all convolutions and linear layers seen so far, with their branches."""
        return self.meter.total()

    @property
    def structure(self) -> dict[str, list[str]]:
        """What `restore` needs: kinds of branches by name, and 'bias' where folding left one."""
        found = {name: [BIAS] for name in sorted(self.attached.biased)}
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
        if self.every is None or self._calls % self.every:
            return []
        if images is not None:
            self._last.use(images)
        interval = self._calls // self.every
        cuts, grown = self.attached.agreed(self._decided(interval))
        inputs = self._last.inputs([*cuts, *grown])
        with self.attached.following():
            changes = [self._cut(name, kinds, inputs.get(name), interval) for name, kinds in cuts.items()]
            changes += [self._grow(name, kinds, inputs.get(name), interval) for name, kinds in grown.items()]
        _log.info('interval %d: %s; %.4g multiply-adds an image', interval, _told(changes), self.flops)
        self.history += changes
        self.scores.clear()
        self._observed = False
        return changes

    def grow_all(self, images: Tensor | None = None) -> list[Change]:
        """Gives every module that may grow all its branches at once.

        Args:
            images: to calibrate with; the model's last input in train mode where None.

        Returns:
            The changes, as of interval 0.

        Raises:
            SnnetError: the network is folded.
        """
        self._refuse_folded()
        if images is not None:
            self._last.use(images)
        lacking = {name: possible_kinds(module, self.kinds)[0] for name, module in self._modules.items()}
        grown = {name: kinds for name, kinds in lacking.items() if kinds}
        inputs = self._last.inputs([*grown]) if self.init == 'calibrated' else {}
        with self.attached.following():
            changes = [self._grow(name, kinds, inputs.get(name), 0) for name, kinds in grown.items()]
        self.history += changes
        return changes

    def fold(self) -> nn.Module:
        """Ends growing: the model (and its moving average) is plain again, with the same output in eval mode.

        Returns:
            The model.

        Raises:
            SnnetError: it is folded already.
        """
        self._refuse_folded()
        with self.attached.following():
            self.attached.dissolve([*structure_of(self.model)], self._last.images)
        self._end()
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Structure, scores and counts, fit for JSON; weights are the model's, moments the optimizer's."""
        return {
            'format': FORMAT,
            'calls': self._calls,
            'observed': self._observed,
            'folded': self._folded,
            'structure': self.structure,
            'scores': self.scores.values(),
            'grids': self.meter.state(),
            'history': [[change.interval, change.name, [*change.added], [*change.cut]] for change in self.history],
            'groups': self.attached.names(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a state: structure first. The weights and the optimizer's moments are to be loaded after it.

        Raises:
            SnnetError: no such state, or a structure that does not match the model.
        """
        if state.get('format') != FORMAT:
            raise SnnetError(f'this is no state of a Grower in format {FORMAT}, but {state.get("format")}')
        lost = sorted({*state['grids'], *(n for sums in state['scores'].values() for n in sums)} - self._names())
        if lost:
            raise SnnetError(f"the structure does not match the network: there is no module '{lost[0]}'")
        for network in self.attached.networks:
            restore(network, state['structure'])
        self.attached.restored(state['structure'], state['groups'])
        self._calls, self._observed = state['calls'], state['observed']
        self.scores.load(state['scores'], self.model)
        self.meter.load(state['grids'])
        self.history = [Change(i, name, tuple(added), tuple(cut)) for i, name, added, cut in state['history']]
        if state['folded']:
            self._end()

    def _end(self) -> None:
        self._folded = True
        self._last.stop()
        self.meter.stop()

    def _names(self) -> set[str]:
        return {name for name, _ in self.model.named_modules()}

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
            elif not self.attached.trains(weight):
                refused[name] = 'the optimizer does not hold its weight'
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
            tell_left_out(name, possible_kinds(module, self.kinds)[1])
        return modules

    def _decided(self, interval: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The branches to cut and those to grow, by name."""
        blocks = {name: module for name, module in self._modules.items() if is_block(module)}
        cuts = {name: kinds for name, block in blocks.items() if (kinds := weak(block.importances(), self.cut))}
        grown = {
            name: kinds
            for name, module in self._modules.items()
            if name not in cuts and name in self.meter.grids and (kinds := possible_kinds(module, self.kinds)[0])
        }
        if grown and not self._observed:
            raise SnnetError('no gradient was observed in this interval: call grower.observe() after backward')
        ranked = self.scores.ranked(list(grown), interval)
        return cuts, {name: grown[name] for name in within_budget(ranked, grown, self.meter, self.budget)}

    def _grow(self, name: str, kinds: list[str], x: Tensor | None, interval: int) -> Change:
        block = as_block(self._modules[name])
        add_branches(block, kinds, name=name, init=self.init, seed=self.seed, turn=interval, x=x)
        self.attached.follow(name, block)
        return Change(interval, name, tuple(kinds), ())

    def _cut(self, name: str, kinds: list[str], x: Tensor | None, interval: int) -> Change:
        block = as_block(self._modules[name])
        cut_branches(block, kinds, x)
        self.attached.follow(name, block)
        if not block.branches:
            self.attached.dissolve([name], self._last.images)
        return Change(interval, name, (), tuple(kinds))

    def _refuse_folded(self) -> None:
        if self._folded:
            raise SnnetError('the network is folded: to grow it again, make a new Grower')


def _told(changes: Sequence[Change]) -> str:
    parts = [f'{c.name} +{" +".join(c.added)}' if c.added else f'{c.name} -{" -".join(c.cut)}' for c in changes]
    return ', '.join(parts) or 'nothing to grow'
