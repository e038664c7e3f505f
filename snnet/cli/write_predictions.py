"""Predictions as a file: CSV, JSON or Parquet, with the columns of timm's inference script."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtra, SnnetError
from ..utils.files import write_atomically

if TYPE_CHECKING:
    from ..net.predict import Prediction

FORMATS = ('.csv', '.json', '.parquet')


def check_format(path: Path) -> None:
    """Refuses a file that could not be written, before anything is computed.

    Raises:
        SnnetError: another ending than those of `FORMATS`, no such folder, or a folder in place of a file.
        MissingExtra: Parquet without pyarrow.
    """
    if path.suffix not in FORMATS:
        raise SnnetError(f"results are written as {', '.join(FORMATS)}, but --out {path} ends in '{path.suffix}'")
    if path.is_dir():
        raise SnnetError(f'results are written into a file, but --out {path} is a folder')
    if not path.parent.is_dir():
        raise SnnetError(f"there is no folder '{path.parent}' for --out {path}")
    if path.suffix == '.parquet':
        _pyarrow()


def write_predictions(path: Path, found: Mapping[str, Prediction]) -> None:
    """Writes the predictions by file name, whole or not at all.

    A CSV file has a line per image with the columns filename, label_0, prob_0, index_0, label_1 and so on. A JSON file
    holds a table by file name, with lists `label`, `prob` and `index`; a Parquet file has these as columns.

    Args:
        path: where; its ending says the format (see `check_format`).
        found: predictions by file name.
    """
    write = {'.csv': _write_csv, '.json': _write_json, '.parquet': _write_parquet}[path.suffix]
    write_atomically(path, lambda temporary: write(temporary, found))


def _write_csv(path: Path, found: Mapping[str, Prediction]) -> None:
    width = max((len(prediction.labels) for prediction in found.values()), default=0)
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(['filename', *(f'{name}_{i}' for i in range(width) for name in ('label', 'prob', 'index'))])
        for name, prediction in found.items():
            triples = zip(prediction.labels, prediction.probabilities, prediction.indices, strict=True)
            writer.writerow([name, *(value for triple in triples for value in triple)])


def _write_json(path: Path, found: Mapping[str, Prediction]) -> None:
    values = {name: dict(zip(('label', 'prob', 'index'), _lists(row), strict=True)) for name, row in found.items()}
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


def _write_parquet(path: Path, found: Mapping[str, Prediction]) -> None:
    arrow, parquet = _pyarrow()
    rows = [_lists(prediction) for prediction in found.values()]
    columns = dict(zip(('label', 'prob', 'index'), zip(*rows, strict=True), strict=True)) if rows else {}
    parquet.write_table(arrow.table({'filename': list(found), **{name: list(c) for name, c in columns.items()}}), path)


def _lists(prediction: Prediction) -> tuple[list[str], list[float], list[int]]:
    return list(prediction.labels), list(prediction.probabilities), list(prediction.indices)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra('writing Parquet', ['pyarrow'], 'parquet', error) from error
    return pyarrow, parquet
