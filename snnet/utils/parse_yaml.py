"""YAML of unknown origin."""

from __future__ import annotations

from typing import Any

import yaml

MOST_VALUES = 10_000
"""No file of settings comes near this number of values."""


def parse_yaml(text: str | bytes) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: it is not valid YAML, nested too deeply, has a number of thousands of digits, or so many values that
            aliases must repeat each other.
    """
    try:
        value = yaml.safe_load(text)
    except RecursionError:
        raise ValueError('it is nested too deeply') from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(' '.join(str(error).split())) from None
    left, count = [value], 0
    while left:
        inner = left.pop()
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f'it holds more than {MOST_VALUES:,} values')
        if isinstance(inner, dict):
            left.extend(inner.values())
        elif isinstance(inner, list | tuple | set):
            left.extend(inner)
    return value
