"""A net as a folder: config.json says how to build it and what is known of it, model.safetensors holds the weights.

statistics.safetensors holds BatchNorm statistics where they were recalibrated; config.json has both files' SHA-256.
README.md is the model card. Such a folder is also what a repository of the Hugging Face hub holds.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..budget.frontier import Record
from ..budget.latency_table import LatencyTable
from ..errors import NoWeights, SnnetError
from ..reparam import expect_biases, folded
from ..saving.config_json import describe, known, rebuild, records_of
from ..saving.model_card import write_card
from ..saving.remote import (
    CONFIG,
    PROFILES,
    STATISTICS,
    WEIGHTS,
    fetch_card,
    locate,
    push_folder,
)
from ..stitching.stitch import Stitch
from ..stitching.stitch_layer import merged_state
from ..utils.files import sha256, write_atomically, write_tensors, write_text
from .batchnorm import Statistics

if TYPE_CHECKING:
    from typing_extensions import Self

    from .stitchable_net import StitchableNet

_log = logging.getLogger(__name__)
FORMAT = 1
"""Version of the layout of config.json; raised when older readers would misread it."""


class Pretrained:
    """`save_pretrained`, `from_pretrained` and `push_to_hub`, in the shape that users of Hugging Face know."""

    def save_pretrained(  # type: ignore[misc]
        self: StitchableNet, folder: str | Path, *, license: str | None = None
    ) -> None:
        """Writes config.json (anchors, stitches, records), model.safetensors and, if any, statistics.safetensors.

        Each file is written whole or not at all. README.md becomes a model card; of one that is there already, only
        the section that we wrote (see `snnet.saving.model_card`).

        Args:
            folder: made where it is missing; other files in it are left alone.
            license: of the weights, for the card; 'unknown' by default.

        Raises:
            SnnetError: an anchor that `timm.create_model` could not make again, or weights that are not finite.
        """
        folder, plain = Path(folder), folded(self)
        config: dict[str, Any] = {
            'format': FORMAT,
            'library': 'snnet',
            'anchors': [describe(self.anchor(i)) for i in range(len(self.anchors))],
            'stitches': [
                {'legs': str(stitch), 'layers': stitch.layers, **known(record)}
                for stitch, record in zip(self.stitches, self.records, strict=True)
            ],
        }
        json.dumps(config)  # before anything is written
        tensors = {name: tensor.contiguous() for name, tensor in merged_state(plain).items()}
        statistics = plain.statistics
        _refuse_infinite({**tensors, **(statistics.values if statistics else {})})
        folder.mkdir(parents=True, exist_ok=True)
        config['sha256'] = {WEIGHTS: _write_tensors(folder / WEIGHTS, tensors)}
        self.note_saved(config['sha256'][WEIGHTS])
        if statistics is None:
            write_text(folder / CONFIG, json.dumps(config, indent=1))
            (folder / STATISTICS).unlink(missing_ok=True)  # of an earlier net
        else:
            _write_with_statistics(folder, config, statistics)
        write_card(folder, config, records_of(config), license=license)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> Self:
        """Builds the net that `save_pretrained` or `push_to_hub` wrote, in eval mode.

        Args:
            folder: a folder, or OWNER/NAME or OWNER/NAME@REVISION on the hub (see `snnet.saving.remote.locate`, also
                for the other arguments).

        Raises:
            SnnetError: the folder holds no net, one of a newer version, or one of a family not known here.
            NoWeights: the weights or statistics are missing, damaged or do not belong to the config.
        """
        folder = locate(
            folder,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        config = read_config(folder)
        try:
            anchors = [rebuild(anchor) for anchor in config['anchors']]
            stitches = [Stitch.parse(row['legs'], tuple(row['layers'])) for row in config['stitches']]
        except (KeyError, TypeError, AttributeError) as error:
            raise SnnetError(f'{folder / CONFIG} is damaged: {type(error).__name__} {error}') from error
        net: Any = cls(anchors, stitches)  # type: ignore[call-arg]  # StitchableNet, which mixes this in
        net.records = [
            Record(**{**asdict(record), **known(row)})
            for record, row in zip(net.records, config['stitches'], strict=True)
        ]
        _load(net, folder / WEIGHTS, config)
        net.eval()
        if 'statistics' in config:
            _load_statistics(net, folder / STATISTICS, config)
        net.note_saved(config['sha256'].get(WEIGHTS))
        _load_tables(net, folder / PROFILES)
        return net

    def push_to_hub(  # type: ignore[misc]
        self: StitchableNet,
        repo_id: str,
        *,
        commit_message: str = 'A stitchable network',
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        license: str | None = None,
    ) -> str:
        """Uploads what `save_pretrained` writes, and the tables of latency; makes the repository where it is missing.

        A model card that is there already is treated as `save_pretrained` does.

        Args:
            repo_id: OWNER/NAME.
            commit_message: of the commit.
            private: whether a new repository is; by default what the hub has as default.
            token: of the hub; by default the one that `hf auth login` or HF_TOKEN gave.
            revision: branch, made where it is missing; the main one by default.
            create_pr: propose it as a pull request instead.
            license: of the weights, for the card.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            SnnetError: a net that cannot be saved, or a hub that refuses or cannot be reached.
        """
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            fetch_card(repo_id, folder, revision=revision, token=token)
            self.save_pretrained(folder, license=license)
            config = read_config(folder)
            write_card(folder, config, records_of(config), license=license, name=repo_id)
            (folder / PROFILES).mkdir()
            for table in self.latency_tables:
                write_text(folder / PROFILES / table.file_name, table.to_json())
            return push_folder(
                folder,
                repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )


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
    """Puts what is known of the stitches into the config.json of a saved net, and into its card where that is news."""
    config = read_config(folder)
    before, config['stitches'] = (
        config['stitches'],
        [
            {'legs': row['legs'], 'layers': row['layers'], **known(record)}
            for row, record in zip(config['stitches'], records, strict=True)
        ],
    )
    if config['stitches'] != before:
        write_card(folder, config, records_of(config))  # first, for a stop between the two leaves news
    write_text(folder / CONFIG, json.dumps(config, indent=1))


def write_statistics(folder: Path, statistics: Statistics) -> None:
    """Puts the BatchNorm statistics of the stitches into the folder of a saved net."""
    config = read_config(folder)
    _write_with_statistics(folder, config, statistics)
    write_card(folder, config, records_of(config))


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


def _load(net: StitchableNet, path: Path, config: dict[str, Any]) -> None:
    tensors = _read_tensors(path, config)
    expect_biases(net, tensors)
    own = net.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += sorted(name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape)
    if wrong:
        raise NoWeights(
            f'{path} does not fit its {CONFIG}: {len(wrong)} tensors differ, such as {", ".join(wrong[:3])}'
        )
    net.load_state_dict(tensors)
    for i in range(len(net.anchors)):
        net.anchor(i).clear_caches()


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
