"""Arguments that count something, as Python's own integers."""

from __future__ import annotations

from numbers import Integral

from ..errors import SnnetError


def whole_number(name: str, value: object, least: int | None = None) -> int:
    """An argument as an int.

    Args:
        name: of the argument, for the message.
        value: an integer of Python or numpy.
        least: the smallest value that is possible; any where None.

    Raises:
        SnnetError: it is something else, or too small.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        limit = '' if least is None else f' of at least {least}'
        raise SnnetError(f'{name} is an integer{limit}, but {value!r} was given')
    if least is not None and value < least:
        raise SnnetError(f'{name} is at least {least}, but {value} was given')
    return int(value)
