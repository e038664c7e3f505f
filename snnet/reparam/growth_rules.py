"""Which branches go and which modules get some at the end of an interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from ..errors import InvalidBudget, SnnetError
from .flops_meter import FlopsMeter

_SPREAD, _LEAST = 0.02, 0.1
"""The published rule's numbers."""

CutRule = str | float | None
"""'published', an importance below which branches are cut, or None to cut nothing."""


def branches_to_cut(importances: Mapping[str, float], cut: CutRule) -> list[str]:
    """The branches of a block to cut.

    Args:
        importances: by kind (see `Block.importances`).
        cut: 'published' cuts, if the importances spread by more than 0.02 (their sample standard deviation, with
            n - 1), those below their mean and below 0.1; a number cuts those below it; None cuts nothing.
    """
    values = list(importances.values())
    if cut is None or not values:
        return []
    if not isinstance(cut, str):
        return [kind for kind, value in importances.items() if value < cut]
    if len(values) < 2 or not all(map(math.isfinite, values)) or statistics.stdev(values) <= _SPREAD:
        return []
    below = min(statistics.fmean(values), _LEAST)
    return [kind for kind, value in importances.items() if value < below]


def modules_to_grow(
    ranked: Sequence[str], kinds: Mapping[str, list[str]], meter: FlopsMeter, budget: float | None
) -> list[str]:
    """The modules that get branches: the best one without a budget, otherwise all that fit, better ones first.

    Args:
        ranked: names from the best to the worst.
        kinds: of the branches that each would get.
        meter: of the network.
        budget: most multiply-adds per image of the growing network.
    """
    if budget is None:
        return list(ranked[:1])
    left, chosen = budget - meter.total(), []
    for name in ranked:
        if (extra := meter.extra(name, kinds[name])) <= left:
            left -= extra
            chosen.append(name)
    return chosen


def check_rules(every: int | None, until: int | None, cut: CutRule, budget: float | None) -> None:
    """Checks an interval, its last step, a rule and a budget.

    Raises:
        SnnetError: an interval or a last step below one, or an unknown rule.
        InvalidBudget: a budget that is not a positive number.
    """
    for name, value in (('every', every), ('until', until)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise SnnetError(f'{name} must be at least one step, not {value!r}')
    if isinstance(cut, str) and cut != 'published':
        raise SnnetError(f"cut must be 'published', a number below which branches go, or None, not '{cut}'")
    if budget is not None and not (budget > 0 and math.isfinite(budget)):
        raise InvalidBudget(f'a budget is a positive number of multiply-adds, not {budget!r}')
