"""Sections: settings grouped in typed dataclasses, which also read as one flat table with timm's names.

A program's settings are a dataclass whose fields are options, or sections that hold options:

    @dataclass
    class OptimizerSettings:
        '''How weights move.'''
        lr: float = option(1e-4, 'learning rate', least=0)

    @dataclass
    class TrainSettings:
        '''Settings of train.py.'''
        optimizer: OptimizerSettings = section(OptimizerSettings)

Every option has a name that no other option of the program has, so `lr` and `optimizer.lr` mean the same. A field whose
name would be a keyword of Python ends in an underscore, which flags, files and messages leave out: `from_` is `--from`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from ..errors import SnnetError, did_you_mean

Settings = TypeVar('Settings')


@dataclass(frozen=True)
class Option:
    """What is known about one setting.

    Attributes:
        name: of the setting.
        section: name of the section that holds it, '' where the program's settings hold it themselves.
        hint: its type.
        default: its value where nothing else is given.
        help: a line for `--help`.
        free: whether it may change between the parts of a run because it does not affect the result.
        choices: the values that are possible; all where empty.
        least: the smallest value that is possible.
        most: the largest value that is possible.
    """

    name: str
    section: str
    hint: Any
    default: Any
    help: str
    free: bool
    choices: tuple[str, ...]
    least: float | None
    most: float | None


def option(
    default: Any,
    text: str,
    free: bool = False,
    choices: Sequence[str] = (),
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """A field of a settings dataclass.

    Args:
        default: value where nothing else is given.
        text: a line for `--help`.
        free: the setting may change between the parts of a run because it does not affect the result.
        choices: the values that are possible (see `check_ranges`).
        least: the smallest value that is possible.
        most: the largest value that is possible.
    """
    metadata = {'help': text, 'free': free, 'choices': tuple(choices), 'least': least, 'most': most}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type[Settings]) -> Settings:
    """A field that holds a section, with the section's defaults."""
    return field(default_factory=kind)  # dataclasses replaces it with an instance of `kind`


def sections_of(kind: type) -> dict[str, type]:
    """The sections of a program's settings, by field name."""
    hints = get_type_hints(kind)
    return {part.name: hints[part.name] for part in fields(kind) if is_dataclass(hints[part.name])}


def options_of(kind: type) -> dict[str, Option]:
    """All options of a program's settings, by name, in the order in which they are declared."""
    hints, found = get_type_hints(kind), dict[str, Option]()
    sections = sections_of(kind)
    for part in fields(kind):
        if part.name in sections:
            inner = options_of(sections[part.name])
            new = [Option(**{**vars(known), 'section': part.name}) for known in inner.values()]
        else:
            default = part.default if part.default_factory is MISSING else part.default_factory()
            new = [Option(part.name, '', hints[part.name], default, **part.metadata)]
        for known in new:
            if known.name in found or known.name in sections:
                raise TypeError(f"{kind.__name__} uses the name '{known.name}' twice")
            found[known.name] = known
    return found


def from_flat(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Settings from values by name, with defaults for the others.

    Raises:
        SnnetError: an unknown name.
    """
    options, sections = options_of(kind), sections_of(kind)
    for name in values:
        if name not in options:
            raise SnnetError(f"unknown setting '{name}'{did_you_mean(name, options)}")
    own = {name: value for name, value in values.items() if not options[name].section}
    parts = {
        part: inner(**{name: value for name, value in values.items() if options[name].section == part})
        for part, inner in sections.items()
    }
    return kind(**own, **parts)


def to_flat(settings: Any) -> dict[str, Any]:
    """The values of all options by name."""
    options = options_of(type(settings))
    return {
        name: getattr(getattr(settings, known.section) if known.section else settings, name)
        for name, known in options.items()
    }


def with_changes(settings: Settings, **changes: Any) -> Settings:
    """A copy of settings with other values for some options."""
    return from_flat(type(settings), {**to_flat(settings), **changes})


def flattened(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """A table that is flat, or nested by section, or partly both, as a flat one.

    Unknown names stay as they are.

    Raises:
        SnnetError: a setting is given twice, or a section is not a table.
    """
    sections, flat, options = sections_of(kind), dict[str, Any](), options_of(kind)
    for name, value in values.items():
        inner = value if name in sections else {name: value}
        if not isinstance(inner, Mapping):
            raise SnnetError(f"'{name}' is a section, so it needs a table of settings, not {value!r}")
        for given, entry in inner.items():
            key = f'{given}_' if f'{given}_' in options else given
            if key in flat:
                raise SnnetError(f"setting '{key}' is given twice")
            if name in sections and key not in options_of(sections[name]):
                raise SnnetError(
                    f"section '{name}' has no setting '{key}'{did_you_mean(str(key), options_of(sections[name]))}"
                )
            flat[key] = entry
    return flat


def check_ranges(settings: Any) -> None:
    """Refuses values outside the choices and limits that the options declare, and infinite ones.

    Raises:
        SnnetError: names the setting and what is possible.
    """
    options = options_of(type(settings))
    for name, value in to_flat(settings).items():
        known = options[name]
        if known.choices and value is not None and value not in known.choices:
            near = did_you_mean(str(value), known.choices)
            raise SnnetError(f"{name} is one of {', '.join(filter(None, known.choices))}, not '{value}'{near}")
        if isinstance(value, float) and math.isinf(value):
            raise SnnetError(f'{shown(name)} is a finite number, not {value}')
        if known.least is not None and value is not None and not value >= known.least:  # NaN is refused, too
            raise SnnetError(f'{name} is at least {known.least:g}, not {value}')
        if known.most is not None and value is not None and not value <= known.most:
            raise SnnetError(f'{name} is at most {known.most:g}, not {value}')


def changes(settings: Any, before: Mapping[str, Any]) -> list[str]:
    """What differs from earlier settings among those that affect the result, each as 'lr was 0.1, is 0.2'.

    Args:
        settings: of now.
        before: earlier values by name; settings that did not exist then had what is now their default.
    """
    found, options = [], options_of(type(settings))
    for name, value in to_flat(settings).items():
        known = options[name]
        now, then = plain(value), before.get(name, plain(known.default))
        if not known.free and now != then:
            found.append(f'{shown(name)} was {then!r}, is {now!r}')
    return found


def shown(name: str) -> str:
    """The name of an option in flags, files and messages."""
    return name.removesuffix('_')


def plain(value: Any) -> Any:
    """A value as YAML gives it back: a list where it is a tuple."""
    return list(value) if isinstance(value, tuple) else value
