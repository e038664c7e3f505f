"""What a fixture makes for many tests, each part when the first of them asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Key = TypeVar('Key')
Value = TypeVar('Value')


class OnDemand(dict[Key, Value]):
    """Values that are made when they are first looked up.

    Args:
        make: from a key to its value.
    """

    def __init__(self, make: Callable[[Key], Value]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: Key) -> Value:
        self[key] = value = self._make(key)
        return value
