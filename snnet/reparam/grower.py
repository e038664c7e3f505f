"""Training with branches that grow: which convolution gets them, which are cut, and everything that must follow."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SnnetError, reason_of
from ..utils.distributed import Ranks
from ..utils.typed_json import quoted
from .block import is_block
from .branch_change import Change
from .candidates import READ_OUTSIDE, Where, check_kinds, names_modules, possible_kinds, trained_modules
from .change_branches import add_branches, check_init, cut_branches
from .flops_meter import FlopsMeter
from .followers import Followers
from .growers import forget_grower, note_grower, refuse_growing
from .growth_rules import CutRule, branches_to_cut, check_rules, modules_to_grow
from .last_input import LastInput
from .rep_layers import as_block
from .scores import Scores
from .structure import BIAS, restore, structure_of, warn_left_out
from .watch_pass import passes_of, read_outside

_log = logging.getLogger(__name__)
FORMAT = 1


class Grower:
    """Grows branches beside the convolutions of a network while it is trained (DyRep).

    Call `observe` after each backward pass and `step` after each step of the optimizer (or once per epoch). Every
    `every` calls of `step` an interval ends: weak branches are cut, then the best-scored module gets branches, and
    neither changes what the network computes. `fold` ends it: the plain network again.

    Args:
        model: the network to train; its last input in train mode calibrates new branches.
        every: calls of `step` per interval; None if only `grow_all` grows.
        score: one of `SCORES` (see `scores.Scores`).
        cut: 'published' cuts, if the importances of a block's branches spread (sample standard deviation) by more than
            0.02, those below their mean and below 0.1; a number cuts those below it; None cuts nothing. Importance is
            mean |gamma| of the branch's last BatchNorm relative to the main branch's.
        budget: most multiply-adds per image of all convolutions and linear layers of the growing network, each counted
            once; an interval then grows as many modules as fit, by score. Without it, one.
        kinds: of branches; all that the shapes allow if None.
        where: names of modules or a rule `(name, module) -> bool`; those of `candidates.grows_by_default` if None.
        init: how branches start, 'calibrated', 'published' or 'static' (see `change_branches.add_branches`).
        seed: of everything random.
        until: the last call of `step` that may change branches; no limit if None.
        optimizer: trains the model; its groups and state follow. Make the Grower before the learning rate scheduler.
        ema: a moving average of the model (timm's `ModelEmaV3` or its network); it follows.
        scaler: of the gradients in mixed precision, if they are scaled when `observe` is called.
        ranks: of a run of many processes; all take the first one's decisions and new branches.

    Attributes:
        history: every change so far.

    Raises:
        SnnetError: an interval below one, nothing to grow, an unknown score, kind or rule, a model in torch's
            DistributedDataParallel, or one that another Grower grows.
        InvalidBudget: a budget that is not a positive number.
    """

    def __init__(
        self,
        model: nn.Module,
        every: int | None,
        score: str = 'snip',
        cut: CutRule = 'published',
        budget: float | None = None,
        kinds: Sequence[str] | None = None,
        where: Where = None,
        init: str = 'calibrated',
        seed: int = 0,
        *,
        until: int | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        ema: nn.Module | None = None,
        scaler: torch.amp.GradScaler | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        refuse_growing(model)
        check_rules(every, until, cut, budget)
        check_kinds(kinds)
        check_init(init)
        self.model, self.every, self.until, self.cut, self.budget = model, every, until, cut, budget
        self.kinds, self.init, self.seed, self.scaler = kinds, init, seed, scaler
        self.followers = Followers(model, optimizer, ema, ranks)
        self.scores = Scores(score, seed)
        self.history: list[Change] = []
        self._named = names_modules(where)
        self._modules = trained_modules(model, where, self.followers.trains)
        for name, module in self._modules.items():
            warn_left_out(name, possible_kinds(module, kinds)[1])
        self.followers.prepare([module.get_parameter('weight') for module in self._modules.values()])
        self._calls, self._observed, self._folded, self._watched = 0, False, False, False
        self.meter, self._last = FlopsMeter(model), LastInput(model)
        note_grower(model, self)

    @property
    def flops(self) -> int:
        """Multiply-adds per image of all convolutions and linear layers seen so far, with their branches."""
        return self.meter.total()

    @property
    def structure(self) -> dict[str, list[str]]:
        """What `restore` needs: kinds of branches by name, and 'bias' if folding left one."""
        found = {name: [BIAS] for name in sorted(self.followers.biased)}
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
        """Counts, and cuts and grows at the end of an interval.

        Args:
            images: to calibrate new branches with (N, C, H, W); the model's last input in train mode if None.

        Returns:
            The changes. After some, make everything again that keeps a list of the model's parameters, such as
            torch's DistributedDataParallel.

        Raises:
            SnnetError: the network is folded, nothing was observed, a score is not a number, or a named module cannot
                fold.
        """
        self._refuse_folded()
        self._calls += 1
        if self.every is None or self._calls % self.every or (self.until is not None and self._calls > self.until):
            return []
        self._last.use(images)
        interval = self._calls // self.every
        cuts, grown = self.followers.first_decision(self._decide(interval))
        inputs = self._last.inputs([*cuts, *grown])
        with self.followers.changing():
            changes = [self._cut(name, kinds, inputs.get(name), interval) for name, kinds in cuts.items()]
            changes += [self._grow(name, kinds, inputs.get(name), interval) for name, kinds in grown.items()]
        summary = ', '.join(map(str, changes)) or 'nothing to grow'
        _log.info('interval %d: %s; %.4g multiply-adds per image', interval, summary, self.flops)
        self.history += changes
        self.scores.clear()
        self._observed = False
        return changes

    def grow_all(self, images: Tensor | None = None) -> list[Change]:
        """Gives every module that may grow all its branches at once.

        Args:
            images: to calibrate with (N, C, H, W); the model's last input in train mode if None.

        Returns:
            The changes, as of interval 0.

        Raises:
            SnnetError: the network is folded, or a named module cannot fold.
        """
        self._refuse_folded()
        self._last.use(images)
        self._drop_read_outside()
        lacking = {name: possible_kinds(module, self.kinds)[0] for name, module in self._modules.items()}
        grown = {name: kinds for name, kinds in lacking.items() if kinds}
        inputs = self._last.inputs([*grown]) if self.init == 'calibrated' else {}
        with self.followers.changing():
            changes = [self._grow(name, kinds, inputs.get(name), 0) for name, kinds in grown.items()]
        self.history += changes
        return changes

    def fold(self) -> nn.Module:
        """Ends growing: the model (and its moving average) is plain again, with the same output in eval mode.

        Returns:
            The model.

        Raises:
            SnnetError: it is folded already, or folding would change the output (see `fold_branches.fold`).
        """
        self._refuse_folded()
        with self.followers.changing():
            self.followers.fold([*structure_of(self.model)], self._last.images)
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
            'score_counts': self.scores.counts(),
            'grids': self.meter.state(),
            'history': [[change.interval, change.name, [*change.added], [*change.cut]] for change in self.history],
            'groups': self.followers.group_names(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state. Load the weights and the optimizer's moments after it.

        Raises:
            SnnetError: not a state of a Grower, or a structure that does not match the model.
        """
        if state.get('format') != FORMAT:
            raise SnnetError(f'this is not the state of a Grower in format {FORMAT}, but {quoted(state.get("format"))}')
        try:
            self._restore_state(state)
        except SnnetError:
            raise
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise SnnetError(f'the state of the Grower is damaged: {reason_of(error)}') from None

    def _restore_state(self, state: Mapping[str, Any]) -> None:
        names = {name for name, _ in self.model.named_modules()}
        lost = sorted({*state['grids'], *(n for sums in state['scores'].values() for n in sums)} - names)
        if lost:
            raise SnnetError(f"the structure does not match the network: there is no module '{lost[0]}'")
        for network in self.followers.networks:
            restore(network, state['structure'])
        self.followers.restored(state['structure'], state['groups'])
        self._calls, self._observed = state['calls'], state['observed']
        self.scores.load(state['scores'], state.get('score_counts'), self.model)
        self.meter.load(state['grids'])
        self.history = [Change(i, name, tuple(added), tuple(cut)) for i, name, added, cut in state['history']]
        if state['folded']:
            self._end()

    def _end(self) -> None:
        self._folded = True
        forget_grower(self.model)
        self._last.stop()
        self.meter.stop()

    def _drop_read_outside(self) -> None:
        """Before anything grows: modules whose weight something else reads, too, cannot fold and do not grow."""
        if self._watched:
            return
        self._watched = True
        args, kwargs = self._last.args, self._last.kwargs
        parts = passes_of(self.model)
        if args is not None and not parts:
            parts = [(self.model, lambda: self.model(*args, **kwargs))]
        for part, run in parts:
            for name in read_outside(part, run, {n: m for n, m in self._modules.items() if not is_block(m)}):
                if self._named:
                    raise SnnetError(f'{name} can have no branches: {READ_OUTSIDE}')
                _log.warning('%s gets no branches: %s', name, READ_OUTSIDE)
                del self._modules[name]

    def _decide(self, interval: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The branches to cut and those to grow, by name."""
        self._drop_read_outside()
        blocks = {name: module for name, module in self._modules.items() if is_block(module)}
        importances = {name: block.importances() for name, block in blocks.items()}
        cuts = {name: kinds for name, each in importances.items() if (kinds := branches_to_cut(each, self.cut))}
        grown = {
            name: kinds
            for name, module in self._modules.items()
            if name not in cuts and name in self.meter.grids and (kinds := possible_kinds(module, self.kinds)[0])
        }
        if grown and not self._observed:
            raise SnnetError('no gradient was observed in this interval: call grower.observe() after backward')
        ranked = self.scores.ranked(list(grown), interval)
        return cuts, {name: grown[name] for name in modules_to_grow(ranked, grown, self.meter, self.budget)}

    def _grow(self, name: str, kinds: list[str], x: Tensor | None, interval: int) -> Change:
        block = as_block(self._modules[name])
        add_branches(block, kinds, name=name, init=self.init, seed=self.seed, turn=interval, x=x)
        self.followers.follow(name, block)
        return Change(interval, name, tuple(kinds), ())

    def _cut(self, name: str, kinds: list[str], x: Tensor | None, interval: int) -> Change:
        block = as_block(self._modules[name])
        cut_branches(block, kinds, x)
        self.followers.follow(name, block)
        if not block.branches:
            self.followers.fold([name], self._last.images)
        return Change(interval, name, (), tuple(kinds))

    def _refuse_folded(self) -> None:
        if self._folded:
            raise SnnetError('the network is folded: to grow it again, make a new Grower')
