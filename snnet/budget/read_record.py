"""Reads the values of a record from a JSON file of unknown origin, and checks each of them. No torch here."""

from __future__ import annotations

import math
from typing import Any

from ..utils.typed_json import TypedTable

_COUNTS = {'flops': 10**18, 'params': 10**15, 'memory': 10**18, 'n': 10**12}
_SHARES = ('top1', 'top5', 'mean_per_class', 'mean_average_precision')
_NUMBERS = {'latency_ms': 1e12, **dict.fromkeys(_SHARES, 100.0), 'loss': 1e30}
"""Largest values."""


def read_known(row: TypedTable) -> dict[str, Any]:
    """Costs and accuracies that a row holds, by the name of their field in `Record`.

    A loss that is not finite counts as unknown: earlier versions noted it where logits overflowed.

    Raises:
        SnnetError: a value of another type or out of range.
    """
    known: dict[str, Any] = {name: row.integer(name, 0, most) for name, most in _COUNTS.items() if row.has(name)}
    for name, most in _NUMBERS.items():
        if row.has(name) and not (name == 'loss' and is_overflow(row.values[name])):
            known[name] = row.number(name, 0.0, most)
    return known


def is_overflow(value: object) -> bool:
    """Whether a value is a number that is not finite."""
    return isinstance(value, float) and not math.isfinite(value)
