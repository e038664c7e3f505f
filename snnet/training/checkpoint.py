"""Checkpoints of a training run: one folder each, written whole or not at all and verified before it is used."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..config.sections import option
from ..errors import SnnetError
from ..saving.tensor_files import without_aliases
from ..utils.files import sha256, sync_folder, write_tensors
from ..utils.read_limited import read_limited
from ..utils.typed_json import TypedTable, read_json
from .run_state import RunState

_log = logging.getLogger(__name__)
_NAME = re.compile(r'step-(\d{8})')
_TENSORS, _VALUES, _SUMS = 'state.safetensors', 'state.json', 'SHA256SUMS'
FORMAT = 2


@dataclass
class CheckpointSettings:
    """When the state of a run is saved, and how much is kept."""

    checkpoint_steps: int | None = option(
        None, 'steps between checkpoints (default: by time alone)', free=True, least=1
    )
    checkpoint_minutes: float | None = option(5.0, 'minutes between checkpoints', free=True, least=0)
    checkpoint_keep: int = option(2, 'newest checkpoints to keep; the best one is kept, too', free=True, least=1)


class Checkpoints:
    """The checkpoints in a folder: `step-00000120/` with safetensors, JSON and SHA-256 sums (as `sha256sum -c` reads).

    No state of a random generator is kept: every draw is keyed by the seed and its place (see `seeds`).

    Args:
        folder: holds them; made at the first save.
        keep: how many of the newest to keep; the one with the lowest loss stays beside them.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, state: RunState, values: dict[str, Any]) -> bool:
        """Writes the state after `step` steps; logs a warning and returns False if there is no room.

        A crash or a full disk at any moment leaves the earlier checkpoints as they are.

        Args:
            step: how many steps are done.
            state: of the run.
            values: what else to keep; `loss` decides which checkpoint is the best.

        Raises:
            SnnetError: a weight or moment is not finite, or the optimizer keeps what a checkpoint cannot hold.
        """
        final = self.folder / f'step-{step:08}'
        if final.exists():  # verified when the run began, or written by it: equal bits
            return True
        tensors = without_aliases(state.tensors())
        _refuse_non_finite(tensors, step, self.folder)
        values = {'format': FORMAT, 'step': step, **values, **state.values()}
        size = sum(tensor.nbytes for tensor in tensors.values())
        temporary = self.folder / f'.{final.name}.{os.getpid()}.tmp'
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear_away()
            free = shutil.disk_usage(self.folder).free
            if free < 1.05 * size:
                raise OSError(f'{free:,} bytes are free')
            _fill(temporary, tensors, values)
            os.replace(temporary, final)
            sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            _log.warning(
                'no checkpoint after step %d: %s needs %s bytes (%s); the run continues',
                step, final, f'{size:,}', error,
            )  # fmt: skip
            return False
        self._prune()
        return True

    def newest(self) -> dict[str, Any] | None:
        """Values of the newest checkpoint that verifies, or None; broken ones are set aside."""
        broken = False
        for step in sorted(self._steps(), reverse=True):
            path = self.folder / f'step-{step:08}'
            reason = _fault(path, step)
            if reason is None:
                values: dict[str, Any] = read_json(path / _VALUES)
                return values
            aside = path.with_name(f'broken-{path.name}')
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            _log.warning('checkpoint %s is broken (%s): set aside as %s', path, reason, aside.name)
            broken = True
        if broken:
            _log.warning('no checkpoint in %s is whole: the run starts from the beginning', self.folder)
        return None

    def load(self, step: int, state: RunState) -> None:
        """Loads the checkpoint of this step, which `newest` has verified.

        Raises:
            SnnetError: it belongs to other networks or another optimizer.
        """
        path = self.folder / f'step-{step:08}'
        values = read_json(path / _VALUES)
        try:
            # on the CPU first: optimizers count steps there, and put the moments where their parameters are
            state.load(load_file(path / _TENSORS), values)
        except (SafetensorError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise SnnetError(
                f'{path} does not fit these anchors and settings: {" ".join(str(error).split())}'
            ) from None

    def _steps(self) -> list[int]:
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob('step-*'))
        return [int(match[1]) for match in found if match]

    def _prune(self) -> None:
        """Removes all but the newest and the best."""
        steps = sorted(self._steps())
        keep = set(steps[-self.keep :])
        losses = {step: self._loss(step) for step in steps}
        keep.add(min(steps, key=lambda step: (losses[step], -step)))
        for step in set(steps) - keep:
            path = self.folder / f'step-{step:08}'
            shutil.rmtree(path.rename(path.with_name(f'.{path.name}.old.tmp')), ignore_errors=True)

    def _loss(self, step: int) -> float:
        """The loss that came with a checkpoint; infinite where none did."""
        try:
            loss = read_json(self.folder / f'step-{step:08}' / _VALUES)['loss']
        except (OSError, ValueError, TypeError, KeyError):  # an older checkpoint, which was not verified
            return math.inf
        return loss if isinstance(loss, float) else math.inf

    def _clear_away(self) -> None:
        """Removes what killed processes left half written or half removed."""
        for path in self.folder.glob('.step-*.tmp'):
            shutil.rmtree(path, ignore_errors=True)


def _fill(folder: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Writes the three files of a checkpoint down to the disk."""
    folder.mkdir()
    write_tensors(folder / _TENSORS, tensors)
    (folder / _VALUES).write_text(json.dumps(values, indent=1), encoding='utf-8')
    sums = ''.join(f'{sha256(folder / name)}  {name}\n' for name in (_TENSORS, _VALUES))
    (folder / _SUMS).write_text(sums, encoding='utf-8')
    for name in (_TENSORS, _VALUES, _SUMS):
        with open(folder / name, 'rb') as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _fault(path: Path, step: int) -> str | None:
    """What is wrong with the files of the checkpoint after `step` steps."""
    try:
        sums = read_limited(path / _SUMS).decode().splitlines()
        for name in (_TENSORS, _VALUES):
            if not (path / name).is_file():
                return f'there is no file {name}'
            if f'{sha256(path / name)}  {name}' not in sums:
                return f'{name} differs from its SHA-256 sum'
        values = TypedTable(read_json(path / _VALUES), _VALUES)
        if (values.values.get('format'), values.values.get('step')) != (FORMAT, step):
            return f'{_VALUES} is not of format {FORMAT} and step {step}'
        if 'skips' in values.values:
            values.integer('skips', 0, 10**9)
        for name in {'moment', 'group', 'scaler', 'grower'} & values.values.keys():
            values.table(name)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _refuse_non_finite(tensors: dict[str, Tensor], step: int, folder: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise SnnetError(
                f'{name} is not finite after step {step}, so no checkpoint was written: lower --lr or set --clip-grad '
                f'(the last good one is in {folder})'
            )
