"""Numbers read from sizes: calculations with them are recorded, and so hold for images of other sizes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, fx


class NumberRecorder(Protocol):
    """Records calculations with numbers."""

    def number(self, target: Any, args: Any, value: Any) -> Any:
        """Records that `target(*args)` is `value`, and returns it as a number whose uses are recorded, too."""


def unrecorded(value: Any) -> Any:
    """Arguments with plain numbers in place of recorded ones."""
    if isinstance(value, RecordedInt | RecordedFloat):
        return value.bare()
    if isinstance(value, slice):
        return slice(*map(unrecorded, (value.start, value.stop, value.step)))
    if isinstance(value, torch.Size):
        return torch.Size(map(unrecorded, value))
    if isinstance(value, tuple) and not hasattr(value, '_fields'):
        return tuple(map(unrecorded, value))
    if isinstance(value, list):
        return list(map(unrecorded, value))
    return value


class RecordedNumber:
    """A size or a number computed from sizes: calculations with it are recorded."""

    node: fx.Node
    recorder: NumberRecorder
    base: Any

    def bare(self) -> Any:
        """The number itself."""
        return self.base.__pos__(self)

    def _escape(self) -> Any:
        """The number, for a use that cannot be recorded: it must then be the same in every run."""
        value = self.bare()
        self.recorder.number(operator.eq, (self, value), True)
        return value

    def __bool__(self) -> bool:
        value: bool = self.recorder.number(operator.ne, (self, 0), self.bare() != 0)
        return value

    def __hash__(self) -> int:
        return hash(self._escape())

    def __int__(self) -> int:
        return int(self._escape())

    def __float__(self) -> float:
        return float(self._escape())

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other


def _recording(function: Any, swapped: bool = False) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        args = (*others, self) if swapped else (self, *others)
        if any(isinstance(other, Tensor) for other in others):
            return NotImplemented
        return self.recorder.number(function, args, function(*unrecorded(args)))

    return method


def _methods() -> Iterator[tuple[str, Any]]:
    for name in ('add', 'sub', 'mul', 'floordiv', 'truediv', 'mod', 'pow'):
        yield f'__{name}__', _recording(getattr(operator, name))
        yield f'__r{name}__', _recording(getattr(operator, name), swapped=True)
    for name in ('neg', 'abs', 'eq', 'ne', 'lt', 'le', 'gt', 'ge'):
        yield f'__{name}__', _recording(getattr(operator, name))
    yield '__round__', _recording(round)
    yield '__ceil__', _recording(math.ceil)
    yield '__floor__', _recording(math.floor)
    yield '__trunc__', _recording(math.trunc)


class RecordedInt(RecordedNumber, int):
    """A size, or an integer computed from sizes."""

    base = int
    locals().update(_methods())


class RecordedFloat(RecordedNumber, float):
    """A number computed from sizes that need not be an integer."""

    base = float
    locals().update(_methods())
