"""Files of tensors in the folder of a saved net: tensors that share memory are stored once, and all are checked."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import NoWeights, SnnetError, excerpt
from ..utils.files import sha256, write_atomically, write_tensors as write_safetensors
from .file_names import CONFIG

_log = logging.getLogger(__name__)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes a safetensors file and returns its SHA-256; of tensors that are one and the same the first is stored."""
    digest = ''

    def write(temporary: Path) -> None:
        nonlocal digest
        write_safetensors(temporary, without_aliases(tensors), {'format': 'pt'})
        digest = sha256(temporary)

    write_atomically(path, write)
    return digest


def read_tensors(path: Path, expected: str | None) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Args:
        path: of the file.
        expected: its SHA-256, where that is known.

    Raises:
        NoWeights: it is missing, damaged or cannot be read, or holds values that are not finite.
    """
    if not path.is_file():
        raise NoWeights(f'{path.parent} holds no {path.stem}: there is no {path.name}')
    try:
        with safe_open(path, 'pt'):  # refuses at once a file whose size is not that of its tensors
            pass
        if expected is not None and sha256(path) != expected:
            raise NoWeights(
                f'{path} is damaged or was replaced: its SHA-256 is not the one in {CONFIG} '
                f'(delete that entry to load it all the same)'
            )
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, NoWeights):
            raise
        damaged = expected is not None and isinstance(error, SafetensorError)  # it was whole when it was written
        said = 'is damaged' if damaged else 'cannot be read'
        raise NoWeights(f'{path} {said}: {excerpt(str(error))}') from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NoWeights(f'{path} is damaged: {excerpt(name)} holds values that are not finite')
    return tensors


def without_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors without those that are the same memory as an earlier one; see `with_aliases`."""
    found: dict[str, Tensor] = {}
    seen: set[object] = set()
    storages: set[int] = set()
    for name, tensor in tensors.items():
        key = _place(tensor)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        contiguous = tensor.contiguous()
        storage = contiguous.untyped_storage().data_ptr()
        if contiguous.numel() and storage in storages:  # another part of the same memory
            contiguous = contiguous.clone()
        storages.add(storage)
        found[name] = contiguous
    return found


def with_aliases(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file, those that are missing taken from one that is the same tensor in the network.

    Args:
        tensors: of the file.
        own: the state dict of the network.
    """
    names: dict[object, str] = {}
    for name, tensor in own.items():
        if name in tensors and tensor.numel():
            names.setdefault(_place(tensor), name)
    missing = {name: names.get(_place(tensor)) for name, tensor in own.items() if name not in tensors}
    return {**tensors, **{name: tensors[other] for name, other in missing.items() if other is not None}}


def _place(tensor: Tensor) -> object:
    """Equal for tensors that are the same numbers at the same place."""
    if tensor.is_meta:
        return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def refuse_infinite(tensors: Mapping[str, Tensor]) -> None:
    """Refuses to save values that are not finite, or not there.

    Raises:
        SnnetError: a tensor holds such values, or none.
    """
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise SnnetError(f'the net is not saved: {name} has no values (it lies on the meta device)')
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise SnnetError(f'the net is not saved: {name} holds values that are not finite')


def common_dtype(tensors: Mapping[str, Tensor]) -> str:
    """The type of all floating-point tensors; 'float32' where they have several (see `describe_rebuildable`)."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return str(kinds.pop()).removeprefix('torch.') if len(kinds) == 1 else 'float32'


def load_into(
    network: nn.Module,
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    path: Path,
    new: Container[str] = (),
) -> None:
    """Loads the tensors of a file into a network.

    Args:
        network: receives them.
        own: its state dict.
        tensors: of the file.
        path: of the file, for messages.
        new: names that the file need not fill.

    Raises:
        NoWeights: names, shapes or types differ.
    """
    full = with_aliases(tensors, own)
    refuse_misfits(own, full, path, new)
    if any(full[name].dtype != own[name].dtype for name in own if name in full):
        _log.warning('%s holds half-precision weights, which are loaded as float32', path)
    network.load_state_dict({**own, **full})


def refuse_misfits(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path, new: Container[str] = ()
) -> None:
    """Compares names, shapes and types of the tensors of a file with those of a network.

    Raises:
        NoWeights: they differ.
    """
    wrong = sorted(name for name in own.keys() ^ tensors.keys() if name not in new)
    both = own.keys() & tensors.keys()
    wrong += sorted(name for name in both if own[name].shape != tensors[name].shape)
    if wrong:
        raise NoWeights(
            f'{path} does not fit its {CONFIG}: {len(wrong)} tensors differ, such as {excerpt(", ".join(wrong[:3]))}'
        )
    for name in sorted(both):
        if not _takes(own[name].dtype, tensors[name].dtype):
            found, expected = (str(dtype).removeprefix('torch.') for dtype in (tensors[name].dtype, own[name].dtype))
            raise NoWeights(f'{path} does not fit its {CONFIG}: {name} is of type {found}, not {expected}')


def _takes(own: torch.dtype, found: torch.dtype) -> bool:
    """Whether a tensor takes values of a type: its own, or half precision (nets saved without a note of their type)."""
    return found == own or (own == torch.float32 and found in (torch.float16, torch.bfloat16))
