"""A model repository of Triton, or of KServe's Triton runtime, from a set of exported stitches. Needs no torch.

Every stitch becomes a model of its own, named after it. Which one answers is up to the client: these servers know no
elastic nets. The format is Triton's (its manual, "Model Repository" and "Model Configuration").
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..errors import SnnetError
from .set_index import Entry, Index

_VERSION = '1'


def write_triton_repository(index: Index, folder: str | Path, name: str = 'net', max_batch: int = 16) -> list[str]:
    """Writes a model repository: FOLDER/NAME_stitch24/config.pbtxt and FOLDER/NAME_stitch24/1/model.onnx, and so on.

    Files are linked where the file system can, and copied elsewhere.

    Args:
        index: a set of ONNX files that accept any batch.
        folder: the repository; it may hold other models.
        name: first part of the names of the models.
        max_batch: largest batch that Triton makes of waiting requests.

    Returns:
        The names of the models, from cheap to expensive.

    Raises:
        SnnetError: the set is not of ONNX, its files accept one batch size only, or a model is there already.
    """
    if index.about.get('file_format') != 'onnx':
        raise SnnetError(
            f'{index.folder} holds {index.about.get("file_format")} files; Triton runs those of --format onnx'
        )
    if index.about.get('batch') != 'any':
        raise SnnetError(
            f'{index.folder} holds files for batches of {index.about["batch"]} only: export without --batch'
        )
    if max_batch < 1:
        raise SnnetError(f'max_batch is at least 1, not {max_batch}')
    models = {f'{name}_stitch{entry.record.stitch}': entry for entry in index.entries}
    for model in models:
        if (Path(folder) / model).exists():
            raise SnnetError(f'{Path(folder) / model} already exists: remove it, or name another folder')
    for model, entry in models.items():
        _write_model(Path(folder) / model, entry, _config(model, index, max_batch))
    return [*models]


def _write_model(folder: Path, entry: Entry, config: str) -> None:
    version = folder / _VERSION
    version.mkdir(parents=True)
    _place(entry.path, version / 'model.onnx')
    data = entry.path.with_name(f'{entry.path.name}.data')
    if data.is_file():  # weights beyond 2 GB; the model names the file
        _place(data, version / data.name)
    (folder / 'config.pbtxt').write_text(config, encoding='utf-8')


def _place(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _config(model: str, index: Index, max_batch: int) -> str:
    size = ', '.join(map(str, index.about['input_size']))
    kind = {'float16': 'TYPE_FP16'}.get(str(index.about.get('dtype')), 'TYPE_FP32')
    several = index.about.get('several_labels') is True
    about = 'parameters { key: "several_labels" value { string_value: "true" } }\n' if several else ''
    return f"""name: "{model}"
backend: "onnxruntime"
max_batch_size: {max_batch}
input [
  {{ name: "{index.about['input']}", data_type: {kind}, dims: [ {size} ] }}
]
output [
  {{ name: "{index.about['output']}", data_type: {kind}, dims: [ {index.about['classes']} ] }}
]
dynamic_batching {{ }}
{about}"""
