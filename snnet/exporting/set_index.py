"""A folder of exported stitches and its index, from which a server picks. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..budget.frontier import Record
from ..budget.read_record import read_known
from ..budget.select import select
from ..errors import SnnetError
from ..utils.typed_json import TypedTable, quoted, read_json

INDEX = 'index.json'
_MAX_FILES = 10_000
FORMAT = 1
"""Version of the layout of index.json; raised when older readers would misread it."""


@dataclass(frozen=True)
class Entry:
    """One file of a set.

    Attributes:
        path: the file.
        record: what is known of its stitch.
        sha256: of the file's bytes, in hexadecimal.
        difference: largest absolute difference to eager, when it was exported.
    """

    path: Path
    record: Record
    sha256: str
    difference: float


@dataclass(frozen=True)
class Index:
    """A set of exported stitches.

    Attributes:
        folder: where the files are.
        about: what all files share: format, input and its size, output, classes, normalization.
        entries: the files, as the index lists them: from cheap to dear.
    """

    folder: Path
    about: dict[str, Any]
    entries: tuple[Entry, ...]


def read_index(folder: str | Path) -> Index:
    """The set of exported stitches in a folder.

    Raises:
        SnnetError: there is no index, it is damaged or of a newer version, or a file of it is missing.
    """
    folder = Path(folder)
    content = read_content(folder)
    rows = TypedTable(content, str(folder / INDEX)).rows('files', _MAX_FILES)
    entries = tuple(_entry(folder, row) for row in rows)
    del content['files']
    missing = [entry.path.name for entry in entries if not entry.path.is_file()]
    if missing:
        raise SnnetError(f'{folder} lacks {" and ".join(missing)}, which its {INDEX} lists')
    return Index(folder, content, entries)


def pick(index: Index, **limits: float | None) -> Entry:
    """The file of the most accurate stitch within all limits, such as `flops=3e9`, chosen as `snnet.select` does.

    Raises:
        InvalidBudget: no limit, or one that is no positive finite number, or a cost that is not known.
        BudgetInfeasible: no stitch of the set fits.
    """
    chosen = select([entry.record for entry in index.entries], **limits).record
    return next(entry for entry in index.entries if entry.record is chosen)


def thin(records: Sequence[Record], points: int, cost: str = 'flops') -> list[Record]:
    """The `points` records of a frontier that lose least accuracy against the whole of it.

    The cheapest and the dearest stay. In between stay those for which the mean over all budgets of the best top-1
    within the budget is largest, with budgets uniform in the logarithm of the cost from the cheapest to the dearest:
    points spread over the costs, and more of them lie where accuracy rises. The choice is exact, and the cheaper
    records win ties.

    Args:
        records: a frontier, from cheap to dear (see `snnet.frontier`).
        points: how many to keep; all where there are no more.
        cost: name of the cost that the frontier is over.

    Raises:
        SnnetError: fewer than two points: the two ends.
    """
    if points < 2:
        raise SnnetError(f'a set has at least two points, the ends of the frontier, but {points} was asked for')
    if len(records) <= points:
        return list(records)
    logs = [math.log(getattr(record, cost)) for record in records]
    last = len(records) - 1
    chains: dict[int, tuple[float, tuple[int, ...]]] = {
        0: (0.0, (0,))
    }  # by its last record, the best chain so far: its area, and its records
    for kept in range(1, points):
        ends = range(kept, last) if kept < points - 1 else [last]
        chains = {end: _longer(chains, end, records, logs) for end in ends}
    return [records[i] for i in chains[last][1]]


def _longer(
    chains: dict[int, tuple[float, tuple[int, ...]]], end: int, records: Sequence[Record], logs: Sequence[float]
) -> tuple[float, tuple[int, ...]]:
    """The best chain that one more record, at index `end`, makes of the chains that end before it."""
    found = [
        (area + (records[i].top1 or 0.0) * (logs[end] - logs[i]), (*chain, end))
        for i, (area, chain) in chains.items()
        if i < end
    ]
    return max(found, key=lambda chain: (chain[0], tuple(-i for i in chain[1])))


def read_content(folder: Path) -> dict[str, Any]:
    """The content of a folder's index.json.

    Raises:
        SnnetError: it is missing, no JSON, not ours, or of another version.
    """
    path = folder / INDEX
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise SnnetError(f'{folder} holds no set of exported stitches: there is no {INDEX}') from None
    if not isinstance(content, dict) or not isinstance(content.get('files'), list):
        raise SnnetError(f'{path} does not describe a set of exported stitches')
    if content.get('format') != FORMAT:
        raise SnnetError(f'{path} has format {quoted(content.get("format"))}, this snnet reads {FORMAT}: upgrade snnet')
    return content


def _entry(folder: Path, row: TypedTable) -> Entry:
    name = row.text('file', 255)
    if Path(name).name != name:
        raise row.wrong('file', f'a file in {folder}')
    is_anchor = row.boolean('anchor') if row.has('anchor') else False
    record = Record(row.integer('stitch', 0, 10**9), row.text('legs', 10_000), anchor=is_anchor, **read_known(row))
    return Entry(folder / name, record, row.text('sha256', 64), row.number('difference', 0, 1e30))
