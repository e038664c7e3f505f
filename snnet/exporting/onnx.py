"""Files of ONNX, which run in onnxruntime and other engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

INPUT, OUTPUT, BATCH = 'images', 'logits', 'batch'
"""Names of the input, the output and the dynamic dimension."""
ONE_FILE = 2**31 - 2**24
"""Most bytes of weights in the file itself: protobuf ends at 2 GiB, and the graph needs some of it."""


def write_onnx(program: ExportedProgram, metadata: Mapping[str, Any], path: Path, data: str) -> None:
    """Writes a program (see `Format.write`)."""
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
    # The exporter folds only small weights of stitch layers that run as convolutions; quantizers need all of them.
    fold_constants(model, should_fold=lambda node: node.op_type == 'Unsqueeze')
    remove_unused_nodes(model)
    ClearMetadataAndDocStringPass()(model)  # stack traces with local paths, larger than many a graph
    inner = [value for node in model.graph for value in node.outputs if not value.is_graph_output()]
    for value in (*inner, *model.graph.initializers.values()):
        value.shape = value.type = None  # engines infer them, and quantizers fail on those of what they change
    model.metadata_props.clear()
    model.metadata_props.update({key: as_text(value) for key, value in metadata.items()})
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    onnx_ir.save(model, path, external_data=data if weights > ONE_FILE else None)


def as_text(value: Any) -> str:
    """A value of the metadata as ONNX stores it: text unchanged, numbers and lists as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Reads a file (see `Format.load`)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
