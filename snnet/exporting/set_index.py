"""A folder of exported stitches and its index, from which a server picks. Needs no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..budget.read_record import read_known
from ..budget.record import Record
from ..budget.select import select
from ..errors import SnnetError
from ..utils.typed_json import TypedTable, quoted, read_json

INDEX = 'index.json'
MAX_FILES = 10_000
FORMAT = 1
"""Version of the layout of index.json; raised when older readers would misread it."""


@dataclass(frozen=True)
class Entry:
    """One file of a set.

    Attributes:
        path: the file.
        record: costs and accuracy of its stitch.
        sha256: SHA-256 of the file, in hexadecimal.
        difference: largest absolute difference to eager, measured when it was exported.
    """

    path: Path
    record: Record
    sha256: str
    difference: float


@dataclass(frozen=True)
class Index:
    """A set of exported stitches.

    Attributes:
        folder: folder of the files.
        about: what all files share: format, input and its size, output, classes, normalization.
        entries: the files, from cheap to expensive.
    """

    folder: Path
    about: dict[str, Any]
    entries: tuple[Entry, ...]


def read_index(folder: str | Path) -> Index:
    """The set of exported stitches in a folder.

    Raises:
        SnnetError: there is no index, it is damaged or of a newer version, or a file that it lists is missing.
    """
    folder = Path(folder)
    content = read_content(folder)
    rows = TypedTable(content, str(folder / INDEX)).rows('files', MAX_FILES)
    entries = tuple(_entry(folder, row) for row in rows)
    del content['files']
    name, count = Counter(entry.path.name for entry in entries).most_common(1)[0]
    if count > 1:
        raise SnnetError(f'{folder / INDEX} is damaged: it lists {name} more than once')
    missing = [entry.path.name for entry in entries if not entry.path.is_file()]
    if missing:
        raise SnnetError(f'{folder} lacks {" and ".join(missing)}, which its {INDEX} lists')
    return Index(folder, content, entries)


def pick(index: Index, **limits: float | None) -> Entry:
    """The file of the most accurate stitch within all limits, chosen as by `snnet.select`.

    Args:
        index: the set.
        limits: upper limits by the name of a cost, such as `flops=3e9`.

    Raises:
        InvalidBudget: no limit, one that is not a positive finite number, or an unknown cost.
        BudgetInfeasible: no stitch of the set fits.
    """
    chosen = select([entry.record for entry in index.entries], **limits).record
    return next(entry for entry in index.entries if entry.record is chosen)


def read_content(folder: Path) -> dict[str, Any]:
    """The content of a folder's index.json.

    Raises:
        SnnetError: it is missing, not JSON, not an index of a set, or of another version.
    """
    path = folder / INDEX
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise SnnetError(f'{folder} holds no set of exported stitches: there is no {INDEX}') from None
    if not isinstance(content, dict) or not isinstance(content.get('files'), list):
        raise SnnetError(f'{path} does not describe a set of exported stitches')
    if type(content.get('format')) is not int or content['format'] != FORMAT:
        raise SnnetError(f'{path} has format {quoted(content.get("format"))}, this snnet reads {FORMAT}: upgrade snnet')
    return content


def file_name(row: TypedTable, key: str) -> str:
    """The name of a file in the folder of the set.

    Args:
        row: what is noted about the file.
        key: where its name stands.

    Raises:
        SnnetError: it is not the name of a file, or leads out of the folder.
    """
    name = row.text(key, 255)
    if Path(name).name != name or name == '..':
        raise row.wrong(key, 'the name of a file in the folder of the set')
    return name


def _entry(folder: Path, row: TypedTable) -> Entry:
    name = file_name(row, 'file')
    is_anchor = row.boolean('anchor') if row.has('anchor') else False
    record = Record(row.integer('stitch', 0, 10**9), row.text('legs', 10_000), anchor=is_anchor, **read_known(row))
    return Entry(folder / name, record, row.text('sha256', 64), row.number('difference', 0, 1e30))
