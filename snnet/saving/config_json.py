"""Rows of config.json: how an anchor is made again, and what is known of a stitch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import timm
from timm.models import is_model

from ..anchors.anchor import Anchor, Source
from ..anchors.normalization import Normalization
from ..anchors.registry import as_anchor
from ..budget.frontier import Record
from ..errors import SnnetError

if TYPE_CHECKING:
    from ..reassembly.network import Reassembled

REASSEMBLED = 'reassembled'
"""Stands where timm's name of a network would, for one that was reassembled; its zoo is described beside it."""
_ELSEWHERE = ('stitch', 'legs', 'anchor', 'latency_ms', 'memory')
"""Fields of a record that its row need not hold: the stitch itself says the first, a table the last."""
_KNOWABLE = [field.name for field in fields(Record) if field.name not in _ELSEWHERE]


def known(record: Record | dict[str, Any]) -> dict[str, Any]:
    """What a row holds of a record."""
    values = asdict(record) if isinstance(record, Record) else record
    return {name: values[name] for name in _KNOWABLE if values.get(name) is not None}


def describe(anchor: Anchor) -> dict[str, Any]:
    """The row of an anchor.

    Raises:
        SnnetError: `timm.create_model` could not make it again.
    """
    from ..reassembly.network import Reassembled  # stands above this module

    if isinstance(anchor.model, Reassembled):
        source = _zoo(anchor.model)
    elif anchor.source is None:
        raise SnnetError(
            f'{anchor.name} cannot be saved: timm.create_model did not make it, so nothing says how to build it again '
            f'(as_anchor(..., source=Source(model, args)) does)'
        )
    else:
        source = anchor.source
    row = {
        'name': anchor.name,
        'model': source.model,
        'args': source.args,
        'input_size': anchor.input_size,
        'official': anchor.official,
    }
    if anchor.normalization is not None:
        row['mean'], row['std'] = anchor.normalization.mean, anchor.normalization.std
    try:
        return json.loads(json.dumps(row))
    except TypeError as error:
        raise SnnetError(f'{anchor.name} cannot be saved: its arguments do not fit in JSON ({error})') from None


def _zoo(net: Reassembled) -> Source:
    """The arguments of `reassemble`, with a row in place of each network."""
    zoo = {leg.anchor: {**describe(net.part(i)), 'name': leg.anchor} for i, leg in enumerate(net.plan)}
    return Source(REASSEMBLED, {'legs': str(net), 'zoo': list(zoo.values()), **net.options})


def rebuild(row: dict[str, Any]) -> Anchor:
    """The anchor of a row, with random weights.

    Raises:
        SnnetError: timm knows no such network.
    """
    if row['model'] == REASSEMBLED:
        from ..reassembly.network import ReassembledAnchor, reassemble  # stands above this module

        args = dict(row['args'])
        zoo = {member['name']: rebuild(member) for member in args.pop('zoo')}
        return ReassembledAnchor(reassemble(args.pop('legs'), zoo, **args), row['name'])
    if not is_model(row['model'].split('.')[0]):
        raise SnnetError(
            f"timm knows no network '{row['model']}' (anchor {row['name']}): "
            f'if it comes from a plugin, import that first (--plugin FILE)'
        )
    model = timm.create_model(row['model'], pretrained=False, **row['args'])
    source = Source(row['model'], row['args'])
    size = tuple(row['input_size'])
    anchor = as_anchor(model, row['name'], input_size=size, source=source, official=row['official'])
    # nets saved before this was noted ran every anchor on the images of the first
    anchor.normalization = Normalization(tuple(row['mean']), tuple(row['std'])) if 'mean' in row else None
    return anchor


def records_of(config: Mapping[str, Any]) -> list[Record]:
    """What the config of a saved net knows of its stitches, without loading it."""
    return [Record(i, row['legs'], anchor=not row['layers'], **known(row)) for i, row in enumerate(config['stitches'])]
