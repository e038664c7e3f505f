"""Which branches go and which modules get some, where an interval ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..errors import InvalidBudget, SnnetError
from .flops_meter import Meter

_SPREAD, _LEAST = 0.02, 0.1
"""The published rule's numbers."""

Cut = str | float | None
"""'published', an importance below which branches are cut, or None to cut nothing."""


def weak(importances: Mapping[str, float], cut: Cut) -> list[str]:
    """The branches of a block to cut, by their importance.

    Args:
        importances: by kind (see `Block.importances`).
        cut: 'published' cuts, where they spread (standard deviation) by more than 0.02, those below their mean and
            below 0.1.
    """
    if cut is None or not importances:
        return []
    if not isinstance(cut, str):
        return [kind for kind, value in importances.items() if value < cut]
    mean = math.fsum(importances.values()) / len(importances)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in importances.values()) / len(importances))
    return [kind for kind, value in importances.items() if spread > _SPREAD and value < min(mean, _LEAST)]


def within_budget(
    ranked: Sequence[str], kinds: Mapping[str, list[str]], meter: Meter, budget: float | None
) -> list[str]:
    """The modules that get branches: the best without a budget, else all that fit, the better first.

    Args:
        ranked: names from the best to the worst.
        kinds: of the branches that each would get.
        meter: of the network.
        budget: most multiply-adds an image of the network.
    """
    if budget is None:
        return list(ranked[:1])
    room, chosen = budget - meter.total(), []
    for name in ranked:
        if (extra := meter.extra(name, kinds[name])) <= room:
            room -= extra
            chosen.append(name)
    return chosen


def check_rules(every: int | None, cut: Cut, budget: float | None) -> None:
    """Refuses an interval, rule or budget that means nothing.

    Raises:
        SnnetError: an interval below one step, or a rule that is not known.
        InvalidBudget: a budget that is no positive number.
    """
    if every is not None and (not isinstance(every, int) or every < 1):
        raise SnnetError(f'an interval is at least one step, not {every!r}')
    if isinstance(cut, str) and cut != 'published':
        raise SnnetError(f"branches are cut by the rule 'published', below a number, or never (None), not '{cut}'")
    if budget is not None and not (budget > 0 and math.isfinite(budget)):
        raise InvalidBudget(f'a budget is a positive number of multiply-adds, not {budget!r}')
