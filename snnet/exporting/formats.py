"""The two formats that a stitch is exported to: how a file is written, and how it runs."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from ..errors import MissingExtra, SnnetError
from .onnx import BATCH, load_onnx, write_onnx
from .pt2 import load_pt2, write_pt2

Run = Callable[[Tensor], Tensor]
"""Maps images (N, C, H, W) to logits (N, classes)."""


class Format(NamedTuple):
    """How a format is written and run.

    Attributes:
        write: writes a program and its metadata to a temporary path; the last argument names the file beside it that
            takes the weights if they are too large for one file.
        load: reads a file from the disk and returns what maps images to logits.
        needs: packages that an extra installs.
    """

    write: Callable[[ExportedProgram, Mapping[str, Any], Path, str], None]
    load: Callable[[Path], Run]
    needs: tuple[str, ...] = ()


FORMATS = {
    'pt2': Format(write_pt2, load_pt2),
    'onnx': Format(write_onnx, load_onnx, ('onnx', 'onnxscript', 'onnxruntime')),
}


def checked_format(format: str | None, path: Path) -> str:
    """The format that was asked for, or the one that the suffix of a path names.

    Raises:
        SnnetError: neither names a format, or they disagree.
        MissingExtra: the format cannot be written here.
    """
    suffix = path.suffix.removeprefix('.').lower()
    if format is None and suffix not in FORMATS:
        raise SnnetError(f"the suffix of '{path}' is not a format: use .{' or .'.join(FORMATS)}, or name the format")
    chosen = suffix if format is None else format
    if chosen not in FORMATS:
        raise SnnetError(f"a stitch is exported to {' or '.join(FORMATS)}, not to '{chosen}'")
    if suffix in FORMATS and suffix != chosen:
        raise SnnetError(f"'{path}' has the suffix of another format than {chosen}: name it .{chosen}")
    require(chosen)
    return chosen


def require(format: str) -> None:
    """Checks that a format can be written here.

    Raises:
        MissingExtra: a package that an extra installs is missing.
    """
    failed: dict[str, ImportError] = {}
    for name in FORMATS[format].needs:
        try:
            importlib.import_module(name)
        except ImportError as error:
            failed[name] = error
    if failed:
        raise MissingExtra(f'exporting to {format}', [*failed], 'export', next(iter(failed.values())))


def data_file(path: Path) -> Path:
    """Where an ONNX file keeps weights that are too large for it."""
    return path.with_name(f'{path.name}.data')


def trace(module: nn.Module, images: Tensor, dynamic: bool) -> ExportedProgram:
    """The graph of a module in eval mode.

    Args:
        module: maps images to logits.
        images: (N, C, H, W); N is at least 2 if the batch is dynamic, because torch treats 1 as a special case.
        dynamic: let the batch have any size; otherwise it has that of `images`.
    """
    module(images)  # fills caches that a network derives from its weights; traced tensors must not end up in them
    shapes = ({0: Dim(BATCH)},) if dynamic else None
    program = export(module, (images,), dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # holds paths of this machine
    return program


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Silences warnings and log messages of the exporters within a `with` block; errors are still raised."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'torch.export', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
