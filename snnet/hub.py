"""A net as a folder: config.json says how to build it and what is known of it, model.safetensors holds the weights.

statistics.safetensors holds BatchNorm statistics where they were recalibrated; config.json has both files' SHA-256.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import is_model
from torch import Tensor

from .anchors import as_anchor
from .errors import NoWeights, SnnetError
from .files import sha256, write_atomically, write_tensors, write_text
from .frontier import Record
from .latency import LatencyTable
from .layer import merged_state
from .line import Anchor, Source
from .statistics import Statistics
from .stitch import Stitch

if TYPE_CHECKING:
    from typing_extensions import Self

    from .net import StitchableNet
    from .reassembly.network import Reassembled

_log = logging.getLogger(__name__)
CONFIG, WEIGHTS, STATISTICS = 'config.json', 'model.safetensors', 'statistics.safetensors'
PROFILES = 'profiles'
"""Folder of the tables of latency that were made of the weights."""
REASSEMBLED = 'reassembled'
"""Stands where timm's name of a network would, for one that was reassembled; its zoo is described beside it."""
FORMAT = 1
"""Version of the layout of config.json; raised when older readers would misread it."""


class Pretrained:
    """`save_pretrained` and `from_pretrained`, in the shape that users of timm and Hugging Face know."""

    def save_pretrained(self: StitchableNet, folder: str | Path) -> None:  # type: ignore[misc]
        """Writes config.json (anchors, stitches, records), model.safetensors and, if any, statistics.safetensors.

        Each file is written whole or not at all.

        Raises:
            SnnetError: an anchor that `timm.create_model` could not make again, or weights that are not finite.
        """
        folder = Path(folder)
        config: dict[str, Any] = {
            'format': FORMAT,
            'library': 'snnet',
            'anchors': [_describe(self.anchor(i)) for i in range(len(self.anchors))],
            'stitches': [
                {'legs': str(stitch), 'layers': stitch.layers, **_known(record)}
                for stitch, record in zip(self.stitches, self.records, strict=True)
            ],
        }
        json.dumps(config)  # before anything is written
        tensors = {name: tensor.contiguous() for name, tensor in merged_state(self).items()}
        statistics = self.statistics
        _refuse_infinite({**tensors, **(statistics.values if statistics else {})})
        folder.mkdir(parents=True, exist_ok=True)
        config['sha256'] = {WEIGHTS: _write_tensors(folder / WEIGHTS, tensors)}
        self.note_saved(config['sha256'][WEIGHTS])
        if statistics is None:
            write_text(folder / CONFIG, json.dumps(config, indent=1))
            (folder / STATISTICS).unlink(missing_ok=True)  # of an earlier net
        else:
            _write_with_statistics(folder, config, statistics)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Builds the net that `save_pretrained` wrote, in eval mode.

        Raises:
            SnnetError: the folder holds no net, one of a newer version, or one of a family not known here.
            NoWeights: the weights or statistics are missing, damaged or do not belong to the config.
        """
        folder = Path(folder)
        config = read_config(folder)
        try:
            anchors = [_rebuild(anchor) for anchor in config['anchors']]
            stitches = [Stitch.parse(row['legs'], tuple(row['layers'])) for row in config['stitches']]
        except (KeyError, TypeError, AttributeError) as error:
            raise SnnetError(f'{folder / CONFIG} is damaged: {type(error).__name__} {error}') from error
        net: Any = cls(anchors, stitches)  # type: ignore[call-arg]  # StitchableNet, which mixes this in
        net.records = [
            Record(**{**asdict(record), **_known(row)})
            for record, row in zip(net.records, config['stitches'], strict=True)
        ]
        _load(net, folder / WEIGHTS, config)
        net.eval()
        if 'statistics' in config:
            _load_statistics(net, folder / STATISTICS, config)
        net.note_saved(config['sha256'].get(WEIGHTS))
        _load_tables(net, folder / PROFILES)
        return net


def read_config(folder: Path) -> dict[str, Any]:
    """The checked config.json of a folder.

    Raises:
        SnnetError: it is missing, no JSON, not ours, or of a newer version.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise SnnetError(f'{folder} holds no stitchable network: there is no {CONFIG}') from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SnnetError(f'{path} is no JSON file: {error}') from None
    if not isinstance(config, dict) or config.get('library') != 'snnet':
        raise SnnetError(f'{path} does not describe a stitchable network of snnet')
    if config.get('format') != FORMAT:
        raise SnnetError(
            f'{path} has format {config.get("format")}, this snnet reads {FORMAT}: upgrade snnet to load it'
        )
    missing = {'anchors', 'stitches'} - config.keys()
    if missing:
        raise SnnetError(f'{path} lacks {" and ".join(sorted(missing))}')
    if not isinstance(config.setdefault('sha256', {}), dict):  # the first versions wrote none
        raise SnnetError(f'{path} is damaged: sha256 is no table of files')
    return config


def write_records(folder: Path, records: list[Record]) -> None:
    """Puts what is known of the stitches into the config.json of a saved net."""
    config = read_config(folder)
    config['stitches'] = [
        {'legs': row['legs'], 'layers': row['layers'], **_known(record)}
        for row, record in zip(config['stitches'], records, strict=True)
    ]
    write_text(folder / CONFIG, json.dumps(config, indent=1))


def write_statistics(folder: Path, statistics: Statistics) -> None:
    """Puts the BatchNorm statistics of the stitches into the folder of a saved net."""
    _write_with_statistics(folder, read_config(folder), statistics)


def _write_with_statistics(folder: Path, config: dict[str, Any], statistics: Statistics) -> None:
    """Writes config.json without statistics, the statistics, and config.json with them: each stop on the way loads."""
    config.pop('statistics', None)
    config['sha256'].pop(STATISTICS, None)
    write_text(folder / CONFIG, json.dumps(config, indent=1))
    config['sha256'][STATISTICS] = _write_tensors(folder / STATISTICS, statistics.values)
    config['statistics'] = {'samples': statistics.samples, 'stitches': statistics.stitches}
    write_text(folder / CONFIG, json.dumps(config, indent=1))


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes a safetensors file and returns its SHA-256."""
    digests = []

    def write(temporary: Path) -> None:
        write_tensors(temporary, dict(tensors), {'format': 'pt'})
        digests.append(sha256(temporary))

    write_atomically(path, write)
    return digests[0]


def _read_tensors(path: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Reads a safetensors file, checked against the SHA-256 in the config where there is one."""
    if not path.is_file():
        raise NoWeights(f'{path.parent} holds no {path.stem}: there is no {path.name}')
    try:
        expected = config['sha256'].get(path.name)
        if expected is not None and sha256(path) != expected:
            raise NoWeights(
                f'{path} is damaged or was replaced: its SHA-256 is not the one in {CONFIG} '
                f'(delete that entry to load it all the same)'
            )
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise NoWeights(f'{path} cannot be read: {error}') from None


def _refuse_infinite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise SnnetError(f'the net is not saved: {name} holds values that are not finite')


_OTHERS = ('stitch', 'legs', 'anchor', 'latency_ms', 'memory')  # the last two are known of one machine only
_KNOWABLE = [field.name for field in fields(Record) if field.name not in _OTHERS]


def _known(record: Record | dict[str, Any]) -> dict[str, Any]:
    values = asdict(record) if isinstance(record, Record) else record
    return {name: values[name] for name in _KNOWABLE if values.get(name) is not None}


def _describe(anchor: Anchor) -> dict[str, Any]:
    from .reassembly.network import Reassembled  # stands above this module

    if isinstance(anchor.model, Reassembled):
        source = _describe_zoo(anchor.model)
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
    try:
        return json.loads(json.dumps(row))
    except TypeError as error:
        raise SnnetError(f'{anchor.name} cannot be saved: its arguments do not fit in JSON ({error})') from None


def _describe_zoo(net: Reassembled) -> Source:
    """The arguments of `reassemble`, with a description in place of each network."""
    zoo = {leg.anchor: {**_describe(net.part(i)), 'name': leg.anchor} for i, leg in enumerate(net.plan)}
    return Source(REASSEMBLED, {'legs': str(net), 'zoo': list(zoo.values()), **net.options})


def _rebuild(row: dict[str, Any]) -> Anchor:
    if row['model'] == REASSEMBLED:
        from .reassembly.network import ReassembledAnchor, reassemble  # stands above this module

        args = dict(row['args'])
        zoo = {member['name']: _rebuild(member) for member in args.pop('zoo')}
        return ReassembledAnchor(reassemble(args.pop('legs'), zoo, **args), row['name'])
    if not is_model(row['model'].split('.')[0]):
        raise SnnetError(
            f"timm knows no network '{row['model']}' (anchor {row['name']}): "
            f'if it comes from a plugin, import that first (--plugin FILE)'
        )
    model = timm.create_model(row['model'], pretrained=False, **row['args'])
    source = Source(row['model'], row['args'])
    size = tuple(row['input_size'])
    return as_anchor(model, row['name'], input_size=size, source=source, official=row['official'])


def _load(net: StitchableNet, path: Path, config: dict[str, Any]) -> None:
    tensors = _read_tensors(path, config)
    own = net.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += sorted(name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape)
    if wrong:
        raise NoWeights(
            f'{path} does not fit its {CONFIG}: {len(wrong)} tensors differ, such as {", ".join(wrong[:3])}'
        )
    net.load_state_dict(tensors)
    for i in range(len(net.anchors)):
        net.anchor(i).forget_caches()


def _load_statistics(net: StitchableNet, path: Path, config: dict[str, Any]) -> None:
    values = _read_tensors(path, config)
    try:
        about = config['statistics']
        net.set_statistics(Statistics(net, values, [net.checked(i) for i in about['stitches']], int(about['samples'])))
    except (KeyError, TypeError, ValueError) as error:
        raise NoWeights(f'{path} does not fit its {CONFIG}: {error}') from None


def _load_tables(net: Any, folder: Path) -> None:
    """Adds the tables of latency in a folder, except those that were made of other weights."""
    for path in sorted(folder.glob('*.json')):
        try:
            net.add_table(LatencyTable.read(path))
        except SnnetError as error:
            _log.warning('%s is left out: %s', path, error)
