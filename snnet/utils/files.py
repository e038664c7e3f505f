"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, then puts it in its place in one step.

    A crash or a full disk at any moment leaves the old file, if there was one, untouched.
    """
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        write(temporary)
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file; wrap it in `write_atomically` or write into a folder that is renamed.

    Raises:
        OSError: it cannot be written; the library has an error of its own for it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # here, because it loads torch, which files of text do not need

    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(f'{path} cannot be written: {error}') from None


def clear_temporaries(folder: Path) -> None:
    """Removes the temporary files that killed processes left in a folder, where no other process may write."""
    for path in folder.glob('.*.tmp'):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, as a rename alone does not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding='utf-8'))


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal, read in pieces: memory does not grow with the file.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
