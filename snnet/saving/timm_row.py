"""What config.json says for readers other than snnet: timm's factory and its image processor in transformers."""

from __future__ import annotations

from typing import Any

from ..utils.typed_json import TypedTable

FOR_OTHERS: dict[str, Any] = {'architecture': 'snnet', 'model_type': 'snnet'}
"""By these, timm and transformers find what was registered under our name."""
_SIDE, _CHANNELS = 4096, 256


def read_timm_row(table: TypedTable) -> dict[str, Any]:
    """The checked part of a config.json that says how images are prepared, in timm's words; other keys are dropped.

    It is written for others: snnet itself goes by the anchors and by 'preprocessing'.

    Raises:
        SnnetError: a value of the wrong type or out of range.
    """
    if not table.has('pretrained_cfg'):
        return {}
    row, found = table.table('pretrained_cfg'), dict[str, Any]()
    if row.has('input_size'):
        found['input_size'] = row.integers('input_size', 1, _SIDE, 3)
        if len(found['input_size']) != 3:
            raise row.wrong('input_size', 'channels, height and width')
    for name, low in (('mean', -1e6), ('std', 1e-6)):
        if row.has(name):
            length = len(row.values[name]) if isinstance(row.values[name], list) else 3
            if length > _CHANNELS:
                raise row.wrong(name, f'a list of at most {_CHANNELS} numbers')
            found[name] = row.numbers(name, low, 1e6, length)
    if row.has('crop_pct'):
        found['crop_pct'] = row.number('crop_pct', 0.01, 2)
    if row.has('num_classes'):
        found['num_classes'] = row.integer('num_classes', 0, 1_000_000)
    for name in ('interpolation', 'crop_mode'):
        if row.has(name):
            found[name] = row.text(name, 40)
    return found
