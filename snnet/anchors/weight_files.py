"""Files of weights as they are found: tables of tensors among other objects, under the prefixes of trainers."""

from __future__ import annotations

import argparse
import codecs
import collections
import datetime
import logging
import pathlib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import NoWeights, reason_of
from .file_kinds import reason_not_weights

_log = logging.getLogger(__name__)

_PREFERRED = ('ema', 'teacher', 'encoder_q', 'online')
"""Where a file holds several copies of a network, these are the ones to use: averaged weights, teachers, encoders."""
_INNER_WRAPPERS = ('_orig_mod', '_checkpoint_wrapped_module', '_fsdp_wrapped_module')
"""What torch calls the block inside the wrappers that compile it, recompute it, or share it among machines."""
_DEPTH = 4
"""Tables are looked for in tables no deeper than this."""


@dataclass(frozen=True)
class _MatchedCopy:
    """A copy of the network in a file.

    Attributes:
        where: the keys that lead to the table that holds it.
        prefix: of its keys in the table.
        table: the table.
        fitting: how many of its tensors fit.
        alike: prefixes under which as many fit.
    """

    where: str
    prefix: str
    table: Mapping[str, Tensor]
    fitting: int
    alike: tuple[str, ...] = ()

    def __str__(self) -> str:
        return '.'.join(part for part in (self.where, self.prefix.rstrip('.')) if part) or 'the top level'


def read_weights(path: Path, name: str, own: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The weights of a network in a file, by the network's own names where the file has them under a prefix.

    Args:
        path: a .safetensors file, or anything that `torch.load` reads without running code.
        name: what messages call the network.
        own: names and shapes of the network's tensors.

    Raises:
        NoWeights: the file is damaged, needs code to be read, or holds no table of tensors.
    """
    content = read_file(path, name)
    tables = list(_tables(content))
    if not tables:
        raise NoWeights(f'{name}: {path} holds no table of tensors')
    candidates = [_best_prefix(where, table, own) for where, table in tables]
    ranked = sorted(candidates, key=lambda c: (-c.fitting, not _is_preferred(str(c)), -len(c.table)))
    chosen = ranked[0]
    if not chosen.fitting:  # keys of another library, which timm may know how to rename
        preferred = [c for c in candidates if _is_preferred(c.where)]
        chosen = (preferred or sorted(candidates, key=lambda c: -len(c.table)))[0]
        return usable(without_wrappers(chosen.table), path)
    others = [*chosen.alike, *(str(c) for c in ranked[1:] if c.fitting == chosen.fitting)]
    if others:
        _log.warning('%s: %s holds it several times; %s is used, not %s', name, path, chosen, ', '.join(others))
    if not chosen.prefix:
        return usable(chosen.table, path)
    kept = {key.removeprefix(chosen.prefix): t for key, t in chosen.table.items() if key.startswith(chosen.prefix)}
    beside = {key: t for key, t in chosen.table.items() if key in own and key not in kept}  # a head next to a backbone
    kept = usable({**kept, **beside}, path)
    left = len(chosen.table) - len(kept)
    _log.info('%s: %d tensors under %r in %s are used, %d others are not', name, len(kept), chosen.prefix, path, left)
    return kept


def read_file(path: Path, name: str) -> Any:
    """What a file holds, without running code from it.

    Args:
        path: a safetensors file, or what `torch.save` wrote, whatever its name.
        name: what messages call the network.

    Raises:
        NoWeights: the file is damaged, or holds other objects than tensors and those of `HARMLESS`.
    """
    try:
        if _is_safetensors(path):
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS), open(path, 'rb') as file:  # by the name, torch would guess
            return torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file leads to
        foreign = _foreign_classes(path)
        if foreign:
            raise NoWeights(
                f'{name}: {path} holds objects beside its weights that only running code could read '
                f'({", ".join(foreign[:3])}): if you trust the file, load it with torch.load(..., weights_only=False) '
                f'and save its table of tensors alone'
            ) from None
        torch_advises = 'Weights only load failed' in str(error)  # to run code from the file, which cannot help here
        cause = 'neither torch nor safetensors wrote it, or it is damaged' if torch_advises else reason_of(error)[:200]
        reason = reason_not_weights(path) or f'holds no readable weights ({cause})'
        raise NoWeights(f'{name}: {path} {reason}') from None


def usable(table: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of a table, dense.

    Args:
        table: by name.
        path: of the file, for messages.

    Raises:
        NoWeights: a weight has no values, or values that are integers or not finite.
    """
    found = {}
    for name, tensor in table.items():
        if tensor.is_meta:
            raise NoWeights(f'{path} holds names and shapes only: {name} has no values (it lies on the meta device)')
        dense = tensor.to_dense() if tensor.layout != torch.strided else tensor
        if name.rpartition('.')[2] in ('weight', 'bias') and not dense.is_floating_point():
            kind = str(tensor.dtype).removeprefix('torch.')
            raise NoWeights(
                f'{path} holds weights of type {kind} ({name}): quantized ones cannot be used, turn them back'
            )
        if dense.is_floating_point() and not bool(dense.isfinite().all()):
            raise NoWeights(f'{path} holds values that are not finite ({name})')
        found[name] = dense
    return found


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors files do: the length of a JSON object, and the object. Names may mislead."""
    with open(path, 'rb') as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], 'little')
    return head[8:] == b'{' and length <= path.stat().st_size - 8


def _foreign_classes(path: Path) -> list[str]:
    """Names of the classes in a file that are not allowed; empty where the file cannot be read at all."""
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # no checkpoint of torch
        return []


def _tables(content: Any, where: str = '', depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Every table of tensors in nested tables, with the keys that lead to it."""
    if isinstance(content, argparse.Namespace | types.SimpleNamespace) or not isinstance(content, Mapping):
        return
    table = {
        _without_inner_wrappers(key): _as_tensor(value) for key, value in content.items() if _is_weight(key, value)
    }
    if table:
        yield where, table
    if depth < _DEPTH:
        for key, value in content.items():
            if isinstance(key, str) and not key.startswith('optim'):
                yield from _tables(value, f'{where}.{key}' if where else key, depth + 1)


def _is_weight(key: Any, value: Any) -> bool:
    numeric = isinstance(value, np.ndarray) and value.dtype.kind in 'fiub'
    return isinstance(key, str) and (numeric or isinstance(value, Tensor))


def _as_tensor(value: Tensor | np.ndarray) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(value)


def _without_inner_wrappers(key: str) -> str:
    """A name without what torch's wrappers of single blocks insert; the first part may belong to the whole network."""
    first, dot, rest = key.partition('.')
    for wrapper in _INNER_WRAPPERS:
        rest = f'.{rest}'.replace(f'.{wrapper}.', '.')[1:]
    return first + dot + rest


def _best_prefix(where: str, table: Mapping[str, Tensor], own: Mapping[str, torch.Size]) -> _MatchedCopy:
    """The prefix under which most of the network's tensors are found with their shapes."""
    fitting: collections.Counter[str] = collections.Counter()
    for key, tensor in table.items():
        for prefix in _prefixes(key):
            if own.get(key[len(prefix) :]) == tensor.shape:
                fitting[prefix] += 1
    if not fitting:
        return _MatchedCopy(where, '', table, 0)
    best = min(fitting, key=lambda prefix: (-fitting[prefix], not _is_preferred(prefix), len(prefix)))
    if fitting[best] == fitting['']:
        best = ''
    alike = [prefix for prefix in fitting if prefix and prefix != best and fitting[prefix] == fitting[best]]
    return _MatchedCopy(where, best, table, fitting[best], tuple(prefix.rstrip('.') for prefix in alike))


def _prefixes(key: str) -> Iterator[str]:
    yield ''
    yield from (key[: i + 1] for i, letter in enumerate(key) if letter == '.')


def _is_preferred(text: str) -> bool:
    return any(word in text.lower() for word in _PREFERRED)


def without_wrappers(table: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A table without the prefixes that torch's wrappers (DDP, compile) give every key."""
    prefixes = ('module.', '_orig_mod.')
    while table and any(all(key.startswith(prefix) for key in table) for prefix in prefixes):
        table = {key.partition('.')[2]: value for key, value in table.items()}
    return dict(table)


def _harmless() -> Iterable[Any]:
    """Classes that trainers keep beside the weights, and whose construction runs no foreign code."""
    scalar = np.float64(0).__reduce__()[0]
    rebuild = np.zeros(1).__reduce__()[0]
    yield from (
        np.ndarray,
        np.dtype,
        *(kind for kind in vars(np.dtypes).values() if isinstance(kind, type)),
        codecs.encode,
    )
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        yield scalar, f'{module}.scalar'
        yield rebuild, f'{module}._reconstruct'
    for module in ('pathlib', 'pathlib._local'):
        for pure in (pathlib.PurePosixPath, pathlib.PureWindowsPath):
            yield pure, f'{module}.{pure.__name__}'
            yield pure, f'{module}.{pure.__name__.removeprefix("Pure")}'
    yield from (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone)
    yield from (argparse.Namespace, types.SimpleNamespace)
    yield _new_dict, 'collections.defaultdict'
    yield collections.OrderedDict, 'yacs.config.CfgNode'  # settings of published checkpoints, a table of plain values
    yield _new_list, 'collections.deque'
    yield from (dict, list, set, frozenset, tuple, int, float, complex, bool, str, bytes, bytearray, slice, range)


def _new_dict(*_: Any) -> dict[Any, Any]:
    """In place of a defaultdict, which torch's unpickler does not fill."""
    return {}


def _new_list(*_: Any) -> list[Any]:
    """In place of a deque, which torch's unpickler does not fill."""
    return []


HARMLESS = list(_harmless())
"""What `torch.serialization.safe_globals` may allow: see `_harmless`."""
