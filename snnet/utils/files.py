"""Files that are written completely or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import SnnetError

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar('Result')


def write_atomically(path: Path, write: Callable[[Path], Result]) -> Result:
    """Has `write` fill a temporary file beside `path`, then renames it to `path`.

    A crash or a full disk at any moment leaves an existing file untouched.

    Returns:
        What `write` returned.
    """
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        mode = _mode_of_new_file(temporary)
        result = write(temporary)
        os.chmod(temporary, mode)  # some libraries make files that nobody else may read
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
        return result
    finally:
        temporary.unlink(missing_ok=True)


def check_new_file(path: Path) -> None:
    """Refuses a path at which no file can be written, before the work that fills it.

    Raises:
        SnnetError: it is empty or a folder, or a file stands where a folder of it should be.
    """
    if not path.name or path.is_dir():
        raise SnnetError(f"'{path}' is a folder: name a file in it")
    check_new_folder(path.parent)


def check_new_folder(path: Path) -> None:
    """Refuses a path at which no folder can be, before the work that fills it.

    Raises:
        SnnetError: it is a file, or inside of one.
    """
    file = next((place for place in (path, *path.parents) if place.is_file()), None)
    if file is not None:
        raise SnnetError(f"'{file}' is a file, so there cannot be a folder '{path}': name another one")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file. Not atomic: wrap it in `write_atomically`, or write into a folder that is renamed.

    Raises:
        OSError: the file cannot be written (safetensors itself raises `SafetensorError`).
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # here, because it loads torch, which files of text do not need

    mode = _mode_of_new_file(path)
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(f'{path} cannot be written: {error}') from None
    os.chmod(path, mode)


def _mode_of_new_file(path: Path) -> int:
    """Makes an empty file, or empties one, and returns the permissions that the umask gives to new files."""
    path.unlink(missing_ok=True)
    path.touch()
    return path.stat().st_mode & 0o777


def clear_temporaries(folder: Path) -> None:
    """Removes temporary files left by killed processes. No other process may be writing to the folder."""
    for path in folder.glob('.*.tmp'):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk, which a rename alone does not do."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding='utf-8'))


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal. Memory does not grow with the size of the file.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
