"""Which arguments of `timm.create_model` a saved net may ask for: those that shape a network, and no others."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from functools import cache
from typing import Any

from timm.models import is_model, model_entrypoint

from ..errors import SnnetError, did_you_mean
from ..utils.typed_json import TypedTable, quoted

_FORBIDDEN = frozenset(
    (
        *('pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'pretrained_custom_load', 'pretrained_filter_fn'),
        *('pretrained_strict', 'checkpoint_path', 'cache_dir', 'cfg', 'model_cfg', 'feature_cfg', 'features_only'),
        *('out_indices', 'scriptable', 'exportable', 'no_jit', 'kwargs_filter', 'device', 'dtype', 'variant'),
        *('self', 'args', 'kwargs'),
    )
)
"""Arguments that read files or make something else than the plain network."""
_LARGEST = 1_000_000
_DEPTHS = ('depth', 'depths', 'layers', 'num_blocks', 'block_depths')
_DEEPEST = 1000


def check_arguments(model: str, args: TypedTable) -> None:
    """Refuses arguments that are not known to shape the network, or that are out of range.

    Args:
        model: timm's name, with or without tag.
        args: of a row of config.json.

    Raises:
        SnnetError: such an argument.
    """
    architecture = model.partition('.')[0]
    known = known_arguments(architecture) if is_model(architecture) else frozenset(args.values)
    for name, value in args.values.items():
        if name in _FORBIDDEN or name not in known:
            raise SnnetError(
                f'{args.where} is damaged: {quoted(name)} is not an argument that shapes {architecture}'
                f'{did_you_mean(name, known - _FORBIDDEN)}'
            )
        _check_value(args, name, value, _DEEPEST if name in _DEPTHS else _LARGEST, 4)


@cache
def known_arguments(architecture: str) -> frozenset[str]:
    """Arguments that shape networks of an architecture: those of the classes in its file and of what creates them."""
    entrypoint = model_entrypoint(architecture)
    names = set(inspect.signature(entrypoint).parameters)
    module = sys.modules[entrypoint.__module__]
    for name, found in vars(module).items():
        if inspect.isclass(found) or (inspect.isfunction(found) and name.lstrip('_').startswith(('create', 'gen'))):
            names |= _parameters(found)
    return frozenset(names - _FORBIDDEN) | {'num_classes', 'in_chans', 'drop_rate', 'drop_path_rate'}


def _parameters(kind: Any) -> set[str]:
    if dataclasses.is_dataclass(kind):
        return {field.name for field in dataclasses.fields(kind)}
    try:
        return set(inspect.signature(kind).parameters)
    except (TypeError, ValueError):  # some classes of C have none
        return set()


def _check_value(args: TypedTable, name: str, value: object, largest: int, depth: int) -> None:
    """Lets through small numbers, short texts, and lists and tables of them."""
    sound = depth > 0
    if isinstance(value, str):
        sound = len(value) <= 200 and value.isprintable()
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int | float):
        sound = abs(value) <= largest
    elif isinstance(value, list | dict):
        sound = sound and len(value) <= 200
        for item in value.values() if isinstance(value, dict) else value:
            if sound:
                _check_value(args, name, item, largest, depth - 1)
    if not sound:
        raise args.wrong(name, f'a short text, a number up to {largest:,}, or a list of them')
