"""The frontier as a folder of exported stitches."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..budget.frontier import reduce_frontier
from ..budget.record import Record
from ..errors import SnnetError
from ..net.stitchable_net import StitchableNet
from ..utils.files import check_new_folder, clear_temporaries, sha256, write_text
from ..utils.json_lines import JsonLines
from ..utils.progress import Progress
from ..utils.typed_json import TypedTable
from ..utils.whole_number import whole_number
from .export import write
from .formats import checked_format, data_file
from .prepared_stitch import PreparedStitch
from .set_index import FORMAT, INDEX, MAX_FILES, Index, file_name, read_content, read_index

_log = logging.getLogger(__name__)
PROGRESS = 'progress.jsonl'
"""What is known of the finished files of an incomplete set, one per line."""
_PER_FILE = ('stitch', 'legs', 'flops', 'params', 'top1')
"""Metadata that differ from file to file; all files of a set share the rest."""
_OURS = re.compile(r'stitch\d+\.\w+', re.ASCII)
"""Names of the files of a set; no other file is ever removed."""


def export_set(
    net: StitchableNet,
    folder: str | Path,
    points: int,
    *,
    format: str = 'pt2',
    batch: int | None = None,
    cost: str = 'flops',
    overwrite: bool = False,
) -> Index:
    """Exports the frontier, reduced to `points` stitches (see `reduce_frontier`), as a folder that a server picks from.

    Each file is written and checked as by `snnet.export`. `index.json` is written last. It holds what all files share
    (input, normalization, classes) and a row for each file with its name, stitch id, legs, costs, accuracy, SHA-256 and
    difference to eager. `snnet.exporting.set_index` reads it and picks from it without torch. An interrupted set is
    continued: complete files are not made again.

    Args:
        net: an evaluated net, in any mode.
        folder: folder of the set; it is made if it is missing.
        points: most stitches; at least two.
        format: 'pt2' or 'onnx'.
        batch: the only batch size that the files accept; any by default.
        cost: name of the cost that the frontier is over.
        overwrite: replace a set of other stitches, weights or format.

    Returns:
        The set.

    Raises:
        MissingExtra: the format needs an extra.
        SnnetError: nothing has been evaluated, the cost is not known, there are fewer than two points, or the folder
            holds another set.
        OSError: the folder cannot be written.
    """
    folder, points = Path(folder), whole_number('points', points)
    batch = None if batch is None else whole_number('batch', batch, least=1)
    checked_format(format, folder / f'x.{format}')
    check_new_folder(folder)
    net.known.verified(net, thorough=True)  # the files say what is known of their weights
    records = reduce_frontier(net.frontier(cost), points, cost)
    if not records and any(record.top1 is not None for record in net.records):
        raise SnnetError(f'no evaluated stitch has a known {cost}: snnet profile FOLDER measures latency and memory')
    if not records:
        raise SnnetError(
            'no stitch has been evaluated, so there is no frontier to export: eval_stitches.py measures accuracy '
            '(single stitches can be exported without it)'
        )
    folder.mkdir(parents=True, exist_ok=True)
    clear_temporaries(folder)
    _StitchSet(net, records, folder, format, batch).make(overwrite)
    return read_index(folder)


class _StitchSet:
    """The files of a set: which ones exist, and making those that are missing.

    Args:
        net: the net that is exported.
        records: the stitches, from cheap to expensive.
        folder: folder of the set.
        format: format of the files.
        batch: the only batch size, or None for any.
    """

    def __init__(self, net: StitchableNet, records: list[Record], folder: Path, format: str, batch: int | None) -> None:
        self.net, self.folder, self.format, self.batch = net, folder, format, batch
        self.records = {f'stitch{record.stitch}.{format}': record for record in records}
        self.wanted = {name: self._prepare(name).fingerprint() for name in self.records}
        self.lines = JsonLines(folder / PROGRESS)

    def make(self, overwrite: bool) -> None:
        """Makes what is missing and writes the index.

        Raises:
            SnnetError: the folder holds another set, which must not be overwritten.
        """
        rows = self._earlier_rows(overwrite)
        progress = Progress(len(self.records), 'files')
        try:
            for name in self.records:
                if not self._is_whole(name, rows.get(name, {})):
                    rows[name] = self._write(name)
                    self.lines.append(rows[name])
                progress.update(1, f'{name}: largest difference to eager {rows[name]["difference"]:.2g}')
        finally:
            progress.close()
        metadata = self._prepare(next(iter(self.records))).metadata
        files = [{**rows[name], **_known(record)} for name, record in self.records.items()]
        shared = {key: value for key, value in metadata.items() if key not in _PER_FILE}
        content = {'format': FORMAT, 'file_format': self.format, **shared, 'files': files}
        write_text(self.folder / INDEX, json.dumps(content, indent=1))
        self.lines.path.unlink(missing_ok=True)

    def _earlier_rows(self, overwrite: bool) -> dict[str, dict[str, Any]]:
        """What an earlier run noted about its files, by name. Files that are no longer wanted are removed."""
        try:
            rows, listed = self._noted_rows()
        except SnnetError as error:
            if not overwrite:
                raise SnnetError(f'{error} (overwrite replaces the set)') from None
            _log.warning('%s; it is kept under another name', error)
            for path in filter(Path.exists, (self.lines.path, self.folder / INDEX)):
                path.replace(path.with_name(f'{path.name}.damaged'))
            rows, listed = [], []
        if listed:
            other = {row['file']: row.get('fingerprint') for row in listed} != self.wanted
            if other and not overwrite:
                raise SnnetError(
                    f'{self.folder} holds a set of other stitches, weights, accuracies or format: '
                    f'replace it (overwrite), or name another folder'
                )
            if other:
                (self.folder / INDEX).unlink()  # first, because it describes files that are about to be replaced
            rows = listed + rows
        for name in filter(_OURS.fullmatch, {row['file'] for row in rows} - self.wanted.keys()):
            for path in (self.folder / name, data_file(self.folder / name)):
                path.unlink(missing_ok=True)
        return {row['file']: row for row in rows}

    def _noted_rows(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What an unfinished run noted about its files, and what the index lists."""
        rows = [_noted(TypedTable(row, str(self.lines.path))) for row in self.lines.read()]
        if not (self.folder / INDEX).exists():
            return rows, []
        table = TypedTable(read_content(self.folder), str(self.folder / INDEX))
        return rows, [_noted(row) for row in table.rows('files', MAX_FILES)]

    def _is_whole(self, name: str, row: dict[str, Any]) -> bool:
        """Whether a file that was noted is still wanted, and is on the disk byte by byte."""
        if row.get('fingerprint') != self.wanted[name] or 'sha256' not in row:
            return False
        digests = {name: row['sha256'], **({row['data']: row['data_sha256']} if 'data' in row else {})}
        paths = {self.folder / file: digest for file, digest in digests.items()}
        return all(path.is_file() and sha256(path) == digest for path, digest in paths.items())

    def _write(self, name: str) -> dict[str, Any]:
        """Exports a stitch and returns what is noted about its file."""
        done = write(self._prepare(name), self.folder / name)
        row = {'file': name, 'sha256': sha256(done.path), 'difference': done.difference}
        if done.data is not None:
            row |= {'data': done.data.name, 'data_sha256': sha256(done.data)}
        return {**row, 'fingerprint': self.wanted[name]}

    def _prepare(self, name: str) -> PreparedStitch:
        return PreparedStitch(self.net, self.records[name].stitch, self.format, self.batch)


def _noted(row: TypedTable) -> dict[str, Any]:
    """What an earlier run noted about a file, value by value."""
    found: dict[str, Any] = {'file': file_name(row, 'file'), 'difference': row.number('difference', 0, 1e30)}
    found |= {key: row.text(key, 64) for key in ('sha256', 'data_sha256', 'fingerprint') if row.has(key)}
    return found | ({'data': file_name(row, 'data')} if row.has('data') else {})


def _known(record: Record) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if value is not None}
