"""JSON files of unknown origin, read with limits and checked value by value."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import SnnetError, reason_of
from .read_limited import MAX_BYTES, read_limited

_SHOWN = 60
"""Most characters of a wrong value that a message quotes."""


def read_json(path: Path, what: str = 'JSON file', max_bytes: int = MAX_BYTES) -> Any:
    """The content of a JSON file; NaN and Infinity are let through, and refused wherever a number is checked.

    Args:
        path: of the file.
        what: what the file should be, for messages.
        max_bytes: a larger file is not read.

    Raises:
        FileNotFoundError: there is no such file.
        SnnetError: it cannot be read, is too large, or is not valid JSON: a syntax error, a key that occurs twice, a
            number of thousands of digits, or lists nested too deeply.
    """
    try:
        return parse_json(read_limited(path, max_bytes))
    except SnnetError:
        raise
    except ValueError as error:
        raise SnnetError(f'{path} is not a valid {what}: {reason_of(error)}') from None


def parse_json(data: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not valid JSON, as `read_json` describes it, or not UTF-8.
    """
    try:
        text = data.decode('utf-8') if isinstance(data, bytes) else data
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError('it is nested too deeply') from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the key {quoted(twice)} occurs twice')
    return found


def quoted(value: object) -> str:
    """A value for a message, cut short where it is long."""
    text = f'a table of {len(value)} entries' if isinstance(value, dict) and len(value) > 3 else repr(value)
    return text if len(text) <= _SHOWN else f'{text[: _SHOWN - 3]}...'


class TypedTable:
    """A JSON object whose values are checked as they are read.

    Args:
        values: the object.
        where: what messages call it, such as 'net/config.json: anchors[0]'.

    Raises:
        SnnetError: `values` is not an object. Every method raises it for a value that is missing, of another type or
            out of range.
    """

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise SnnetError(f'{where} is damaged: it is {quoted(values)}, not a table')
        self.values: dict[str, Any] = values
        self.where = where

    def has(self, name: str) -> bool:
        """Whether there is a value other than null."""
        return self.values.get(name) is not None

    def wrong(self, name: str, expected: str) -> SnnetError:
        """The error for a value that is not what was expected."""
        if name not in self.values:
            return SnnetError(f'{self.where} is damaged: it lacks {name}')
        return SnnetError(f'{self.where} is damaged: {name} is {quoted(self.values[name])}, not {expected}')

    def text(self, name: str, max_length: int = 1000) -> str:
        """A string that is not empty and has no control characters."""
        value = self.values.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= max_length or not value.isprintable():
            raise self.wrong(name, f'a printable text of at most {max_length} characters')
        return value

    def texts(self, name: str, max_length: int, max_count: int) -> list[str]:
        """A list of 1 to `max_count` strings, each like those of `text`."""
        value = self.values.get(name)
        if not isinstance(value, list) or not 0 < len(value) <= max_count:
            raise self.wrong(name, f'a list of 1 to {max_count:,} texts')
        for i, item in enumerate(value):
            TypedTable({f'{name}[{i}]': item}, self.where).text(f'{name}[{i}]', max_length)
        return value

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self.wrong(name, 'true or false')
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        """An integer from `low` to `high`."""
        value = self.values.get(name)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f'an integer from {low} to {high:,}')
        return value

    def number(self, name: str, low: float, high: float) -> float:
        """A finite number from `low` to `high`; an integer stays one."""
        value: Any = self.values.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:  # not so for NaN either
            raise self.wrong(name, f'a number from {low:g} to {high:g}')
        assert isinstance(value, int | float)
        return value

    def numbers(self, name: str, low: float, high: float, length: int) -> list[float]:
        """A list of `length` finite numbers from `low` to `high`."""
        value = self.values.get(name)
        if not isinstance(value, list) or len(value) != length:
            raise self.wrong(name, f'a list of {length} numbers')
        return [TypedTable({name: item}, self.where).number(name, low, high) for item in value]

    def integers(self, name: str, low: int, high: int, max_length: int) -> list[int]:
        """A list of integers from `low` to `high`."""
        value = self.values.get(name)
        sound = isinstance(value, list) and len(value) <= max_length
        if not sound or not all(type(item) is int and low <= item <= high for item in value or ()):
            raise self.wrong(name, f'a list of at most {max_length:,} integers from {low} to {high:,}')
        assert isinstance(value, list)
        return value

    def table(self, name: str) -> TypedTable:
        """An object."""
        if not isinstance(self.values.get(name), dict):
            raise self.wrong(name, 'a table')
        return TypedTable(self.values[name], f'{self.where}: {name}')

    def rows(self, name: str, max_length: int) -> Iterator[TypedTable]:
        """The objects of a list that has at least one."""
        value = self.values.get(name)
        if not isinstance(value, list) or not 0 < len(value) <= max_length:
            raise self.wrong(name, f'a list of 1 to {max_length:,} tables')
        for i, row in enumerate(value):
            yield TypedTable(row, f'{self.where}: {name}[{i}]')

    def only(self, known: Mapping[str, object] | tuple[str, ...]) -> None:
        """Refuses keys that are not known."""
        strange = sorted(set(self.values) - set(known))
        if strange:
            raise SnnetError(f'{self.where} is damaged: {quoted(strange[0])} is not a known key')
