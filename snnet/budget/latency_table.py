"""Tables of measured latency and memory: which stitches, on which machine, with which weights. No torch here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ..errors import ForeignTable, SnnetError
from ..utils.typed_json import TypedTable, quoted, read_json
from .record import Record

FORMAT = 1
"""Version of the layout of a table's file; raised when older readers would misread it."""


@dataclass(frozen=True)
class Setup:
    """What latency depends on besides the stitch and the batch; a table is valid only where all of it agrees.

    Attributes:
        device: 'cpu', 'cuda', ...
        hardware: name of the processor or accelerator.
        threads: CPU threads of one operation.
        torch: version of torch.
        dtype: type of the weights, with 'autocast' behind the type of mixed precision.
        backend: 'eager', or 'compile' where blocks are compiled.
    """

    device: str
    hardware: str
    threads: int
    torch: str
    dtype: str
    backend: str

    def __str__(self) -> str:
        return (
            f'{self.hardware} ({self.device}, {self.threads} threads), torch {self.torch}, {self.dtype}, {self.backend}'
        )

    def differences(self, other: Setup) -> str:
        """What differs from another setup, such as 'dtype bfloat16, not float32'; empty where nothing does."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return ', '.join(f'{name} {mine}, not {theirs}' for name, mine, theirs in pairs if mine != theirs)


@dataclass(frozen=True)
class Latency:
    """What one call of a stitch takes.

    Attributes:
        ms: median milliseconds per batch.
        low, high: 10 % and 90 % quantile of the same calls; for a prediction, scaled like its median.
        memory: bytes that the stitch alone needs: parameters, buffers, and the peak of what a call allocates.
        predicted: summed from the times of its parts, not measured.
    """

    ms: float
    low: float
    high: float
    memory: int
    predicted: bool = False


@dataclass(frozen=True)
class LatencyTable:
    """Latency and memory of stitches for one batch size in one setup.

    Attributes:
        setup: where it was measured.
        batch: images per call.
        weights: SHA-256 of the weights it was measured with; None for a net that was never saved.
        rows: what is known, by stitch id.
        error: 'mean' and 'largest' error of predictions on the measured stitches, as shares of the measured medians.
    """

    setup: Setup
    batch: int
    weights: str | None
    rows: Mapping[int, Latency]
    error: Mapping[str, float] | None = None

    @property
    def file_name(self) -> str:
        """Name of the table's file, which is different for each setup and batch size."""
        parts = asdict(self.setup).values()
        words = [re.sub(r'[^a-z0-9.+]+', '-', str(part).lower()).strip('-') for part in parts]
        return f'{"_".join(words)}_batch{self.batch}.json'

    @property
    def measured(self) -> frozenset[int]:
        """Ids of the stitches that were measured rather than predicted."""
        return frozenset(stitch for stitch, row in self.rows.items() if not row.predicted)

    def check_rows(self, stitches: int) -> None:
        """Refuses rows that a net of so many stitches cannot have.

        Raises:
            ForeignTable: a row of a stitch that the net lacks.
            SnnetError: a time that is not positive and finite, or a negative memory.
        """
        for stitch, row in self.rows.items():
            if not (isinstance(stitch, Integral) and 0 <= stitch < stitches):
                raise ForeignTable(f'the table has a row for stitch {stitch!r}, but this net has {stitches}')
            times = (row.ms, row.low, row.high)
            if not all(isinstance(time, Real) and 0 < time < math.inf for time in times):
                raise SnnetError(
                    f'the table says that stitch {stitch} takes {row.ms!r} ms ({row.low!r} to {row.high!r})'
                )
            if not (isinstance(row.memory, Real) and 0 <= row.memory < math.inf):
                raise SnnetError(f'the table says that stitch {stitch} needs {row.memory!r} bytes')

    def applied(self, records: Iterable[Record]) -> list[Record]:
        """The records with latency and memory from this table; None where it has no row."""
        nothing: dict[str, Any] = {'latency_ms': None, 'memory': None}
        known = {i: {'latency_ms': row.ms, 'memory': row.memory} for i, row in self.rows.items()}
        return [replace(record, **known.get(record.stitch, nothing)) for record in records]

    def to_json(self) -> str:
        """The content of the table's file."""
        return json.dumps({'format': FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """The table in a file.

        Raises:
            SnnetError: the file is not a valid latency table, or has a newer format.
        """
        try:
            content = read_json(path, 'latency table')
        except FileNotFoundError as error:
            raise SnnetError(f'{path} cannot be read: {error.strerror}') from None
        table = TypedTable(content, str(path))
        if type(content.get('format')) is not int or content['format'] != FORMAT:
            raise SnnetError(f'{path} has format {quoted(content.get("format"))}, this snnet reads {FORMAT}')
        missing = {'weights', 'error'} - content.keys()
        if missing:
            raise table.wrong(missing.pop(), 'there')
        weights = table.text('weights') if table.has('weights') else None
        errors = None
        if table.has('error'):
            shares = table.table('error')
            shares.only(('mean', 'largest'))
            errors = {name: shares.number(name, 0, 1e9) for name in ('mean', 'largest')}
        rows = table.table('rows')
        latencies = {}
        for name in rows.values:
            if not re.fullmatch(r'0|[1-9]\d{0,8}', name, re.ASCII):
                raise SnnetError(f'{rows.where} is damaged: {quoted(name)} is not a stitch id')
            latencies[int(name)] = _read_latency(rows.table(name))
        return cls(_read_setup(table.table('setup')), table.integer('batch', 1, 10**9), weights, latencies, errors)

    def __str__(self) -> str:
        measured = len(self.measured)
        return f'batch {self.batch} on {self.setup}: {measured} measured, {len(self.rows) - measured} predicted'


def _read_setup(row: TypedTable) -> Setup:
    row.only(tuple(field.name for field in fields(Setup)))
    texts = {name: row.text(name) for name in ('device', 'hardware', 'torch', 'dtype', 'backend')}
    return Setup(threads=row.integer('threads', 1, 10**6), **texts)


def _read_latency(row: TypedTable) -> Latency:
    row.only(tuple(field.name for field in fields(Latency)))
    times = {name: row.number(name, 1e-9, 1e12) for name in ('ms', 'low', 'high')}
    predicted = row.boolean('predicted') if row.has('predicted') else False
    return Latency(memory=row.integer('memory', 0, 10**18), predicted=predicted, **times)
