"""What a request asks for, from its query, its form or its JSON parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import did_you_mean
from ..service.demand import Demand
from ..service.refusal import Refusal

NUMBERS = ('deadline_ms', 'min_top1', 'flops', 'stitch', 'top')
NAMES = ('model', *NUMBERS)
_MOST_LABELS = 1000


@dataclass(frozen=True)
class RequestOptions:
    """Options of a request.

    Attributes:
        demand: what it asks of the answer.
        model: name of the net; None for the first one.
        top: how many labels the answer lists per image.
    """

    demand: Demand
    model: str | None = None
    top: int = 5


def options_of(values: Iterable[tuple[str, Any]], deadline_ms: float) -> RequestOptions:
    """Options from pairs of name and value, where the values may be text.

    Args:
        values: the pairs.
        deadline_ms: deadline where none is given.

    Raises:
        Refusal: an unknown name, one that is given twice, or a value that cannot be.
    """
    found: dict[str, Any] = {}
    for name, value in values:
        if name not in NAMES:
            raise Refusal(
                'invalid', f"options are {', '.join(NAMES)}, not '{name[:60]}'{did_you_mean(name[:60], NAMES)}"
            )
        if name in found:
            raise Refusal('invalid', f'{name} is given twice')
        found[name] = _number(name, value) if name in NUMBERS else _text(name, value)
    stitch, top = _whole(found, 'stitch', 0), _whole(found, 'top', 1)
    if top is not None and top > _MOST_LABELS:
        raise Refusal('invalid', f'top is at most {_MOST_LABELS}, not {top}')
    demand = Demand(found.get('deadline_ms', deadline_ms), found.get('min_top1', 0.0), found.get('flops'), stitch)
    return RequestOptions(demand, found.get('model'), 5 if top is None else top)


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) or len(str(value)) > 400 else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise Refusal('invalid', f'{name} is a number, not {str(value)[:40]!r}')
    return number


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Refusal('invalid', f'{name} is a text, not {str(value)[:40]!r}')
    return value


def _whole(found: Mapping[str, Any], name: str, least: int) -> int | None:
    if name not in found:
        return None
    value = found[name]
    if not (least <= value <= 1e9 and value == int(value)):
        raise Refusal('invalid', f'{name} is an integer of at least {least}, not {value:g}')
    return int(value)
