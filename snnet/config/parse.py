"""Settings of a program from its defaults, a recipe, a YAML file and the command line, in rising order."""

from __future__ import annotations

import argparse
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml

from ..errors import SnnetError, did_you_mean
from ..utils.parse_yaml import parse_yaml
from .sections import Option, Settings, flattened, from_flat, options_of, plain, sections_of, shown, to_flat

NAME_LISTS = ('anchors', 'from_', 'zoo')
"""Settings that name several networks: separated by commas, or a list in YAML."""
Recipes = Mapping[str, Mapping[str, Any]]


def parse(
    kind: type[Settings],
    argv: Sequence[str] | None = None,
    positional: str | Sequence[str] = '',
    recipes: Recipes | None = None,
    prog: str | None = None,
    implied: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from the defaults, then the file named by --config, then the command line, each after its recipe.

    Args:
        kind: dataclass of settings (see `sections`).
        argv: arguments; those of the process by default.
        positional: names of the settings that are given without a flag; the last may be a list.
        recipes: settings by the name that --recipe, or `recipe` in the file, selects.
        prog: name of the program in help and usage; its file name by default.
        implied: the recipe by the name of a setting that implies it, where no recipe is named.

    Raises:
        SnnetError: the file is missing or is not YAML, a key is unknown, a value has the wrong type, or there is no
            such recipe.
    """
    positional = (positional,) if isinstance(positional, str) else tuple(positional)
    given = vars(_parser(kind, positional, recipes, prog).parse_args(argv))
    file = given.pop('config', None)
    layers = [read_yaml(Path(file), kind, recipes is not None) if file else {}, given]
    values = _implied(layers, implied or {}, recipes or {})
    for layer in layers:
        recipe = layer.pop('recipe', None)
        if recipe is not None:
            if not recipes or recipe not in recipes:
                raise SnnetError(f"recipe is one of {', '.join(recipes or ())}, not '{recipe}'")
            values.update(recipes[recipe])
        values.update(layer)
    options = options_of(kind)
    return from_flat(kind, {name: convert(name, value, options[name].hint) for name, value in values.items()})


def _implied(layers: Sequence[Mapping[str, Any]], implied: Mapping[str, str], recipes: Recipes) -> dict[str, Any]:
    """The settings of a recipe that nobody named, because another setting implies it."""
    if any('recipe' in layer for layer in layers):
        return {}
    found = (recipe for name, recipe in implied.items() if any(layer.get(name) for layer in layers))
    return dict(recipes.get(next(found, ''), {}))


def _described(kind: Any) -> str:
    """What a type is called in messages: for lists, what they hold."""
    inner = get_args(kind)
    return f'{kind.__name__} of {_described(inner[0])}' if inner else getattr(kind, '__name__', str(kind))


def convert(name: str, value: Any, hint: Any) -> Any:
    """A value as the type of its setting.

    Args:
        name: of the setting, for the message.
        value: as YAML or the command line gave it.
        hint: type of the setting.

    Raises:
        SnnetError: it does not fit.
    """
    kinds = _alternatives(hint)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    try:
        if kind is bool and isinstance(value, bool):
            return value
        if get_origin(kind) is tuple and isinstance(value, (list, tuple)) and len(value) == len(get_args(kind)):
            return tuple(float(x) for x in value)
        if get_origin(kind) is list:
            values = value if isinstance(value, (list, tuple)) else [value]
            return [convert(name, x, get_args(kind)[0]) for x in values]
        if name in NAME_LISTS and isinstance(value, (list, tuple)):
            return ','.join(convert(name, x, str) for x in value)
        if kind is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        if kind in (int, float) and not isinstance(value, bool) and (kind is float or float(value).is_integer()):
            return kind(float(value))
    except (TypeError, ValueError, OverflowError):
        pass
    raise SnnetError(f"setting '{shown(name)}' expects {_described(kind)}, but got {value!r}")


def read_yaml(path: Path, kind: type, recipe: bool = False) -> dict[str, Any]:
    """The flat table of settings in a YAML file, which may be flat or nested by section.

    Args:
        path: of the file.
        kind: dataclass of settings. A class attribute `noted` names keys that a program adds to its own file beside
            the settings; they are left out.
        recipe: whether the file may name a recipe.

    Raises:
        SnnetError: the file cannot be read, is not a YAML table, or has a key that is not a setting.
    """
    try:
        values = parse_yaml(path.read_text(encoding='utf-8')) or {}
    except OSError as error:
        raise SnnetError(f'config {path} cannot be read: {error.strerror}') from None
    except ValueError as error:
        raise SnnetError(f'config {path} is not valid YAML: {error}') from None
    if not isinstance(values, dict):
        raise SnnetError(f'config {path} is not a table of settings')
    values = {key: value for key, value in values.items() if key not in getattr(kind, 'noted', ())}
    try:
        values = flattened(kind, values)
    except SnnetError as error:
        raise SnnetError(f'config {path}: {error}') from None
    known = [*options_of(kind), *(['recipe'] if recipe else [])]
    for key in values:
        if key not in known:
            raise SnnetError(
                f"config {path}: unknown setting '{key}'{did_you_mean(str(key), [*known, *sections_of(kind)])}"
            )
    return values


def to_yaml(settings: Any) -> str:
    """All settings, nested by section, as a YAML file that gives them again."""
    nested: dict[str, Any] = {}
    options = options_of(type(settings))
    for name, value in to_flat(settings).items():
        part = options[name].section
        table = nested.setdefault(part, {}) if part else nested
        table[shown(name)] = plain(value)
    return str(yaml.safe_dump(nested, sort_keys=False))


def _parser(
    kind: type, positional: tuple[str, ...], recipes: Recipes | None, prog: str | None
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False)
    parser.add_argument('--config', help='YAML file with settings')
    if recipes:
        text = f'settings that go together ({", ".join(recipes)}), before those of the file; other flags go first'
        parser.add_argument('--recipe', help=text, default=argparse.SUPPRESS)
    groups: dict[str, Any] = {'': parser}
    for name, inner in sections_of(kind).items():
        groups[name] = parser.add_argument_group(name, (inner.__doc__ or '').partition('\n')[0])
    for known in options_of(kind).values():
        _add_argument(groups[known.section], known, known.name in positional)
    return parser


def _add_argument(parser: Any, known: Option, positional: bool) -> None:
    text = known.help + ('' if known.default in (None, '', []) else f' (default: {known.default})')
    text = text.replace('%', '%%')
    kind = _alternatives(known.hint)[0]
    if positional:
        parser.add_argument(known.name, help=text, nargs='+' if get_origin(kind) is list else None)
        return
    flag = '--' + shown(known.name).replace('_', '-')
    more: dict[str, Any] = {'default': argparse.SUPPRESS, 'dest': known.name, 'help': text}
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **more)
    elif get_origin(kind) is tuple:
        parser.add_argument(flag, nargs=len(get_args(kind)), type=float, **more)
    elif get_origin(kind) is list:
        parser.add_argument(flag, nargs='+', **more)
    else:
        parser.add_argument(flag, type=kind, **more)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type that it is."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
