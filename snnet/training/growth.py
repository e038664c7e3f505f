"""Branches that grow in a training run: the settings that say how, and the `Grower` that they make."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from ..config.sections import option
from ..errors import InvalidBudget, SnnetError, did_you_mean
from ..net.stitchable_net import StitchableNet
from ..reparam import SCORES, Change, Grower
from ..reparam.candidates import check_kinds, growable, grows_by_default
from ..reparam.growth_rules import CutRule, check_rules
from ..utils.distributed import Ranks
from ..utils.eval_mode import eval_mode

_log = logging.getLogger(__name__)
_OF_INTERVALS = ('grow_score', 'grow_cut', 'grow_budget', 'grow_until')
_OF_BRANCHES = ('grow_kinds', 'grow_where')


@dataclass
class GrowthSettings:
    """Branches that grow and fold away (DyRep)."""

    grow_every: int | None = option(None, 'steps from one growth of branches to the next (default: none grow)', least=1)
    grow_every_epochs: int | None = option(None, 'the same in epochs, in place of --grow-every', least=1)
    grow_until: int | None = option(
        None, 'epochs after which branches neither come nor go (default: only the last step changes none)', least=1
    )
    grow_score: str = option('snip', 'what branches grow by: snip, grad_norm, synflow, vote or random')
    grow_cut: str = option('published', "which branches go: by the 'published' rule, below a number, or 'none'")
    grow_budget: float | None = option(
        None, 'most multiply-adds per image of the growing net: grow all that fits (default: the best, each time)'
    )
    grow_kinds: list[str] = option([], 'kinds of branches (default: all that fit)')
    grow_where: list[str] = option([], 'modules to grow, or what holds them (default: stitch layers, k x k kernels)')
    grow_static: bool = option(False, 'branches everywhere from the start instead, to compare with')


def grows(settings: GrowthSettings) -> bool:
    """Whether the run has branches at any time."""
    return settings.grow_static or _has_intervals(settings)


def check_growth(settings: GrowthSettings, compiled: bool) -> None:
    """Checks that the settings of growing mean something, alone and together.

    Args:
        settings: of growing.
        compiled: whether the blocks are compiled.

    Raises:
        SnnetError: one of them does not; InvalidBudget if it is the budget.
    """
    unchanged = {setting.name: setting.default for setting in fields(settings)}
    idle = [name for name in _OF_INTERVALS if getattr(settings, name) != unchanged[name]]
    idle += [name for name in _OF_BRANCHES if getattr(settings, name)] if not settings.grow_static else []
    if not _has_intervals(settings) and idle:
        raise SnnetError(f'{idle[0]} has no meaning without grow_every: set --grow-every to a number of steps')
    if not grows(settings):
        return
    if settings.grow_every is not None and settings.grow_every_epochs is not None:
        raise SnnetError('grow_every and grow_every_epochs do not go together: one counts steps, the other epochs')
    if _has_intervals(settings) and settings.grow_static:
        raise SnnetError('grow_static and grow_every do not go together: branches stay from the start, or come and go')
    if compiled:
        raise SnnetError('compile does not go together with branches, because every change would compile blocks again')
    if settings.grow_score not in SCORES:
        raise SnnetError(f"grow_score must be one of {', '.join(SCORES)}, not '{settings.grow_score}'")
    if settings.grow_score == 'grasp':
        raise SnnetError("grow_score 'grasp' needs a training loop of your own with a Grower: it differentiates twice")
    check_kinds(settings.grow_kinds or None)
    check_rules(settings.grow_every, settings.grow_until, _cut_of(settings), settings.grow_budget)


def make_grower(
    settings: GrowthSettings,
    net: StitchableNet,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    ranks: Ranks,
    epochs: int,
    epoch_steps: int,
    seed: int,
    learned: bool,
) -> Grower | None:
    """The grower of a run; None if nothing grows.

    Args:
        settings: of growing.
        net: the network to train.
        optimizer: trains it.
        average: moving average of the net, if any.
        ranks: of the run.
        epochs: of the run.
        epoch_steps: steps of an epoch.
        seed: of the random score and of new weights.
        learned: whether the net starts from learned weights, which branches must not disturb.

    Raises:
        SnnetError: an interval that the run does not reach, nothing to grow, or a module that the net does not have.
        InvalidBudget: a budget that the plain net exceeds.
    """
    if not grows(settings):
        return None
    every, until = _interval_and_end(settings, epochs, epoch_steps)
    start = 'static' if settings.grow_static and not learned else 'calibrated'
    grower = Grower(
        net, every, settings.grow_score, _cut_of(settings), settings.grow_budget, settings.grow_kinds or None,
        _where(settings, net), start, seed, until=until, optimizer=optimizer, ema=average, ranks=ranks,
    )  # fmt: skip
    weight = next(net.parameters())
    with eval_mode(net), torch.no_grad():  # so that every convolution is counted from the first step on
        for i in range(len(net.anchors)):
            net.anchor(i)(torch.zeros(1, *net.input_size, device=weight.device, dtype=weight.dtype))
    if settings.grow_budget is not None and settings.grow_budget <= grower.flops:
        raise InvalidBudget(
            f'grow_budget {settings.grow_budget:.4g} leaves no room for branches: the convolutions and linear layers '
            f'of the plain net take {grower.flops:.4g} multiply-adds per image'
        )
    return grower


def as_log_entry(change: Change) -> dict[str, Any]:
    """A change as the log has it."""
    return {'module': change.name, 'added': [*change.added], 'cut': [*change.cut]}


def _has_intervals(settings: GrowthSettings) -> bool:
    return settings.grow_every is not None or settings.grow_every_epochs is not None


def _interval_and_end(settings: GrowthSettings, epochs: int, epoch_steps: int) -> tuple[int | None, int | None]:
    """The steps of an interval, and the last step that may change branches; what grows later would not be trained.

    Raises:
        SnnetError: the run does not reach the end of an interval in time.
    """
    steps = epochs * epoch_steps
    if not _has_intervals(settings) or steps == 0:
        return settings.grow_every, None
    in_epochs = settings.grow_every_epochs is not None
    every = settings.grow_every or (settings.grow_every_epochs or 0) * epoch_steps
    end = steps if settings.grow_until is None else settings.grow_until * epoch_steps
    until = min(end, steps - 1)
    if until < every:
        name = 'grow_every_epochs' if in_epochs else 'grow_every'
        given = f'{name} {getattr(settings, name)}'
        why = f'{given} leaves no step to train what has grown, because the run has {steps} steps'
        if settings.grow_until is not None and end < every:
            why = (
                f'grow_until {settings.grow_until} lets nothing grow, because the first interval ends after {every} '
                f'steps and epoch {settings.grow_until} after {end}'
            )
        raise SnnetError(f'{why}: lower --{name.replace("_", "-")}')
    return every, until


def _cut_of(settings: GrowthSettings) -> CutRule:
    """The rule that cuts branches."""
    text = settings.grow_cut
    if text in ('published', 'none'):
        return None if text == 'none' else text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise SnnetError(f"grow_cut must be 'published', 'none' or an importance below which branches go, not '{text}'")
    return number


def _where(settings: GrowthSettings, net: StitchableNet) -> list[str]:
    """Names of the modules that may grow: those named, and the usual ones inside others that are named.

    Raises:
        SnnetError: a name that the net does not have, or a named module that can have no branches.
    """
    modules = dict(net.named_modules())
    names: dict[str, None] = {}
    for wanted in settings.grow_where or ('',):
        if wanted not in modules:
            raise SnnetError(f"grow_where: the net has no module '{wanted}'{did_you_mean(wanted, modules)}")
        below = f'{wanted}.' if wanted else ''
        inside = {name for name in modules if name.startswith(below)} - {wanted}
        if inside:
            names |= dict.fromkeys(_usual(net, inside))
        else:
            names[wanted] = None
    return list(names)


def _usual(net: StitchableNet, inside: set[str]) -> list[str]:
    """The trained modules of these names that usually grow."""
    found, refused = growable(net, lambda name, module: name in inside and grows_by_default(name, module))
    for name, reason in refused.items():
        _log.warning('%s gets no branches: %s', name, reason)
    return [name for name, module in found.items() if module.get_parameter('weight').requires_grad]
