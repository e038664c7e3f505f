"""config.json of a saved net: read with every value checked, and written whole or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..anchors.class_names import LONGEST
from ..budget.read_record import is_overflow, read_known
from ..budget.record import Record
from ..errors import SnnetError, reason_of
from ..stitching.stitch import Stitch
from ..utils.files import write_text
from ..utils.typed_json import TypedTable, quoted, read_json
from .anchor_rows import MAX_CLASSES, AnchorRow
from .file_names import CONFIG
from .timm_row import FOR_OTHERS, read_timm_row

FORMATS = (1, 2)
"""Versions of the layout of config.json. A net whose stitches have parameters of their own is of version 2, because
older readers would run those stitches without them."""
MAX_ANCHORS, MAX_STITCHES, MAX_LAYERS = 100, 20_000, 100_000
DTYPES = ('float32', 'float16', 'bfloat16', 'float64')
"""Types that the weights of a saved net may have."""
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'lanczos', 'box', 'hamming')
"""How images may be resized."""
_ELSEWHERE = ('stitch', 'legs', 'anchor', 'latency_ms', 'memory', 'recalibrated')
"""Fields of a record that its row does not hold: the stitch, a latency table or the statistics say them."""
_IN_ROW = [item.name for item in fields(Record) if item.name not in _ELSEWHERE]


@dataclass
class NetConfig:
    """What config.json says.

    Attributes:
        anchors: how each anchor is built again.
        stitches: the sub-networks, by id.
        records: what is known of them.
        sha256: of the other files, by name; empty in folders of the first versions.
        statistics: 'samples', 'held_out' and 'groups' of the BatchNorm statistics (see `Statistics.description`); None
            where there are none.
        own: 'stitches' and 'count' of the parameters that belong to single stitches; None where there are none.
        dtype: of the floating-point weights.
        preprocessing: how images are prepared for evaluation where that differs from the first anchor's own way, in
            timm's words ('crop_pct', 'interpolation').
        class_names: in the order of the logits; empty where nothing says them.
        for_timm: how images are prepared, for readers other than snnet (see `read_timm_row`).
        several_labels: whether each logit says yes or no to its class by itself.
    """

    anchors: list[AnchorRow]
    stitches: list[Stitch]
    records: list[Record]
    sha256: dict[str, str] = field(default_factory=dict)
    statistics: dict[str, Any] | None = None
    own: dict[str, Any] | None = None
    dtype: str = 'float32'
    preprocessing: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    for_timm: dict[str, Any] = field(default_factory=dict)
    several_labels: bool = False

    def to_values(self) -> dict[str, Any]:
        """The values of config.json."""
        values: dict[str, Any] = {
            'format': FORMATS[0] if self.own is None else FORMATS[1],
            'library': 'snnet',
            **FOR_OTHERS,
            'pretrained_cfg': self.for_timm,
            'anchors': [row.to_values() for row in self.anchors],
            'stitches': [
                {'legs': str(stitch), 'layers': list(stitch.layers), **_row_of(record)}
                for stitch, record in zip(self.stitches, self.records, strict=True)
            ],
            'sha256': self.sha256,
        }
        if self.dtype != 'float32':
            values['dtype'] = self.dtype
        if self.preprocessing:
            values['preprocessing'] = self.preprocessing
        if self.class_names:
            values['class_names'] = list(self.class_names)
        if self.several_labels:
            values['several_labels'] = self.several_labels
        if self.statistics is not None:
            values['statistics'] = self.statistics
        if self.own is not None:
            values['own_parameters'] = self.own
        return values

    def write(self, folder: Path) -> None:
        """Writes config.json into a folder."""
        write_text(folder / CONFIG, json.dumps(self.to_values(), indent=1))


def read_config(folder: Path) -> NetConfig:
    """The checked config.json of a folder.

    Raises:
        SnnetError: it is missing, not ours, of a newer version, or a value is missing, of the wrong type or out of
            range.
    """
    path = folder / CONFIG
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise SnnetError(f'{folder} holds no stitchable network: there is no {CONFIG}') from None
    if not isinstance(content, dict) or content.get('library') != 'snnet':
        raise SnnetError(f'{path} does not describe a stitchable network of snnet')
    if type(content.get('format')) is not int or content['format'] not in FORMATS:
        raise SnnetError(
            f'{path} has format {quoted(content.get("format"))}, this snnet reads {FORMATS[0]} and {FORMATS[1]}: '
            f'upgrade snnet to load it'
        )
    return parse_config(TypedTable(content, str(path)))


def parse_config(table: TypedTable) -> NetConfig:
    """The checked content of a config.json (see `read_config`)."""
    anchors = [AnchorRow.read(row) for row in table.rows('anchors', MAX_ANCHORS)]
    stitches, records = [], []
    for i, row in enumerate(table.rows('stitches', MAX_STITCHES)):
        stitches.append(_read_stitch(row))
        records.append(Record(i, str(stitches[-1]), anchor=not stitches[-1].layers, **read_known(row)))
    sums, statistics, own = _read_sums(table), _read_statistics(table), _read_own(table)
    dtype, preprocessing, for_timm = _read_dtype(table), _read_preprocessing(table), read_timm_row(table)
    names = tuple(table.texts('class_names', LONGEST, MAX_CLASSES)) if table.has('class_names') else ()
    several = table.has('several_labels') and table.boolean('several_labels')
    return NetConfig(anchors, stitches, records, sums, statistics, own, dtype, preprocessing, names, for_timm, several)


def _read_stitch(row: TypedTable) -> Stitch:
    layers = row.integers('layers', 0, MAX_LAYERS, 1000)
    try:
        return Stitch.parse(row.text('legs', 10_000), tuple(layers))
    except ValueError as error:  # of ours, or of a number of thousands of digits
        raise SnnetError(f'{row.where} is damaged: {reason_of(error)}') from None


def _read_sums(table: TypedTable) -> dict[str, str]:
    if not table.has('sha256'):  # the first versions wrote none
        return {}
    sums = table.table('sha256')
    for name, value in sums.values.items():
        if not isinstance(value, str) or not re.fullmatch('[0-9a-f]{64}', value):
            raise sums.wrong(name, 'a SHA-256 in hexadecimal')
    return dict(sums.values)


def _read_statistics(table: TypedTable) -> dict[str, Any] | None:
    if not table.has('statistics'):
        return None
    about = table.table('statistics')
    stitches = about.integers('stitches', 0, MAX_STITCHES, MAX_STITCHES)
    groups: list[dict[str, Any]] = [{'share': 1.0, 'stitches': stitches}]  # before shares were chosen
    if about.has('groups'):
        groups = [
            {
                'share': group.number('share', 0.0, 1.0),
                'stitches': group.integers('stitches', 0, MAX_STITCHES, MAX_STITCHES),
            }
            for group in about.rows('groups', MAX_STITCHES)
        ]
    return {
        'samples': about.integer('samples', 1, 10**12),
        'held_out': about.integer('held_out', 0, 10**12) if about.has('held_out') else 0,
        'stitches': stitches,
        'groups': groups,
    }


def _read_own(table: TypedTable) -> dict[str, Any] | None:
    if not table.has('own_parameters'):
        return None
    about = table.table('own_parameters')
    stitches = about.integers('stitches', 0, MAX_STITCHES, MAX_STITCHES)
    return {'stitches': stitches, 'count': about.integer('count', 0, 10**15)}


def _read_preprocessing(table: TypedTable) -> dict[str, Any]:
    if not table.has('preprocessing'):
        return {}
    found, row = dict[str, Any](), table.table('preprocessing')
    if row.has('crop_pct'):
        found['crop_pct'] = row.number('crop_pct', 0.01, 1)
    if row.has('interpolation'):
        found['interpolation'] = row.text('interpolation')
        if found['interpolation'] not in INTERPOLATIONS:
            raise row.wrong('interpolation', f'one of {", ".join(INTERPOLATIONS)}')
    return found


def _read_dtype(table: TypedTable) -> str:
    if not table.has('dtype'):
        return 'float32'
    dtype = table.text('dtype')
    if dtype not in DTYPES:
        raise table.wrong('dtype', f'one of {", ".join(DTYPES)}')
    return dtype


def _row_of(record: Record) -> dict[str, Any]:
    """What the row of a stitch holds of its record."""
    values = asdict(record)
    return {name: values[name] for name in _IN_ROW if values[name] is not None and not is_overflow(values[name])}


def with_known(records: Sequence[Record], known: Sequence[Record]) -> list[Record]:
    """Records with the values that a config holds in place of their own, where it holds any."""
    merged = []
    for record, found in zip(records, known, strict=True):
        values: Mapping[str, Any] = _row_of(found)
        merged.append(Record(**{**asdict(record), **values}))
    return merged
