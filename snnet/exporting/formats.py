"""The two formats that a stitch is exported to: how a file is written and how it runs.

A .pt2 file (torch.export) runs wherever torch is, an ONNX file wherever onnxruntime or another engine is.
"""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import MissingExtra

INPUT, OUTPUT, BATCH = 'images', 'logits', 'batch'
"""Names of the input, the output and the dynamic dimension of an ONNX file."""
METADATA = 'metadata.json'
"""Name of the extra file of a .pt2 that says what the file is."""
ONE_FILE = 2**31 - 2**24
"""Most bytes of weights that an ONNX file holds itself: protobuf ends at 2 GiB, graph included."""

Run = Callable[[Tensor], Tensor]


class Format(NamedTuple):
    """How a format is written and run.

    Attributes:
        write: writes a program with its metadata to a temporary path; the last argument names the file beside it
            that takes weights too large for one file.
        load: reads a file from the disk and returns what maps images to logits.
        needs: modules that an extra installs.
    """

    write: Callable[[ExportedProgram, Mapping[str, Any], Path, str], None]
    load: Callable[[Path], Run]
    needs: tuple[str, ...] = ()


def trace(module: nn.Module, images: Tensor, dynamic: bool) -> ExportedProgram:
    """The graph of a module in eval mode.

    Args:
        module: maps images to logits.
        images: (N, C, H, W); N is at least 2 where the batch is dynamic, for torch treats 1 apart.
        dynamic: let the batch have any size; otherwise it has that of `images`.
    """
    module(images)  # fills what a network derives from its weights, which must not be filled with traced tensors
    shapes = ({0: Dim(BATCH)},) if dynamic else None
    program = torch.export.export(module, (images,), dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # paths on this machine are nobody's business
    return program


@contextmanager
def hushed() -> Iterator[None]:
    """Keeps the exporters' chatter off the terminal within a `with` block; errors are raised as ever."""
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


def require(format: str) -> None:
    """Refuses a format that cannot be written here.

    Raises:
        MissingExtra: something that an extra installs is missing.
    """
    missing = []
    for name in FORMATS[format].needs:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise MissingExtra(f"exporting to {format} needs {' and '.join(missing)}: pip install 'snnet[export]'")


def data_file(path: Path) -> Path:
    """Where an ONNX file keeps weights that are too large for it."""
    return path.with_name(f'{path.name}.data')


def _write_pt2(program: ExportedProgram, metadata: Mapping[str, Any], path: Path, data: str) -> None:
    with open(path, 'wb') as file:  # by path, torch would ask for its suffix
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata, indent=1)})


def _load_pt2(path: Path) -> Run:
    with open(path, 'rb') as file:
        run: Run = torch.export.load(file).module()
    return run


def _write_onnx(program: ExportedProgram, metadata: Mapping[str, Any], path: Path, data: str) -> None:
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    made = torch.onnx.export(
        program,
        (),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: BATCH},) if program.range_constraints else None,  # a fixed batch has none
        dynamo=True,
        verbose=False,
    )
    assert made is not None
    model = made.model
    # weights of stitch layers that run as convolutions: the exporter folds small ones alone, and quantizers need all
    fold_constants(model, should_fold=lambda node: node.op_type == 'Unsqueeze')
    remove_unused_nodes(model)
    ClearMetadataAndDocStringPass()(model)  # stack traces with paths on this machine, larger than many a graph
    inner = [value for node in model.graph for value in node.outputs if not value.is_graph_output()]
    for value in (*inner, *model.graph.initializers.values()):
        value.shape = value.type = None  # engines infer them, and quantizers trip over those of what they change
    model.metadata_props.clear()
    model.metadata_props.update({key: as_text(value) for key, value in metadata.items()})
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    onnx_ir.save(model, path, external_data=data if weights > ONE_FILE else None)


def as_text(value: Any) -> str:
    """A value of the metadata as ONNX keeps it: text as it is, numbers and lists in JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


FORMATS = {
    'pt2': Format(_write_pt2, _load_pt2),
    'onnx': Format(_write_onnx, _load_onnx, ('onnx', 'onnxscript', 'onnxruntime')),
}
