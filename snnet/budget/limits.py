"""Limits on costs as users give them, and the error for limits that no candidate keeps."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Rational, Real

from ..errors import BudgetInfeasible, InvalidBudget

Limit = float | Fraction | Decimal
"""A number that Python compares exactly with any int and float."""


def checked_limit(name: str, limit: object) -> Limit:
    """A limit as a number that compares exactly with costs, and is never larger than the given one.

    Scalars of other libraries are converted, because these libraries round what they compare with: numpy says that
    209108167 is not larger than `numpy.float32(209108160)`.

    Args:
        name: name of the cost that is limited, for the message.
        limit: any real number: an int, float, Fraction, Decimal or a scalar of numpy.

    Raises:
        InvalidBudget: the limit is not a positive finite number.
    """
    number = _exact(limit)
    if number is None or not 0 < number < math.inf:  # false for NaN, too
        raise InvalidBudget(f'a budget must be a positive finite number, but {name}={limit!r} was given')
    return number


def _exact(limit: object) -> Limit | None:
    """The limit as a number of Python's own types; None if it is not a finite real number."""
    if isinstance(limit, bool):
        return None
    if isinstance(limit, Decimal):
        return limit if limit.is_finite() else None
    if isinstance(limit, Integral):
        return int(limit)
    if isinstance(limit, Rational):
        return Fraction(int(limit.numerator), int(limit.denominator))
    if isinstance(limit, Real):
        number = float(limit)
        if number == limit or math.isnan(number):
            return number
        if hasattr(limit, 'as_integer_ratio'):  # numpy's longdouble, which holds more digits
            return Fraction(*limit.as_integer_ratio())
        return math.nextafter(number, 0) if number > limit else number
    return None


def infeasible(subject: str, asked: Mapping[str, Limit], nearest: str, costs: Mapping[str, float]) -> BudgetInfeasible:
    """The error that says what was asked, what is possible, and by how much it missed.

    Args:
        subject: what was looked for and not found, with its verb, such as 'no stitch has'.
        asked: the limits by name.
        nearest: the candidate that misses the limits least, in words.
        costs: its costs, by the names of the limits.
    """
    digits = next(n for n in (6, 9, 17) if n == 17 or all(_differ(costs[name], asked[name], n) for name in asked))
    wanted = ' and '.join(f'{name} <= {_as_float(limit):.{digits}g}' for name, limit in asked.items())
    offered = ' and '.join(f'{name} = {costs[name]:.{digits}g}' for name in asked)
    missed = max(excess(costs[name], limit) for name, limit in asked.items())
    return BudgetInfeasible(
        f'{subject} {wanted}: the nearest, {nearest}, has {offered}, {missed:.3g} times the budget',
        {name: costs[name] for name in asked},
    )


def _differ(cost: float, limit: Limit, digits: int) -> bool:
    """Whether a cost and a limit differ in print; those that are equal need not."""
    return cost == limit or f'{cost:.{digits}g}' != f'{_as_float(limit):.{digits}g}'


def excess(cost: float, limit: Limit) -> float:
    """A cost as a multiple of a limit."""
    return cost / max(_as_float(limit), sys.float_info.min)


def _as_float(limit: Limit) -> float:
    try:
        return float(limit)
    except OverflowError:
        return sys.float_info.max
