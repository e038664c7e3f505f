"""The states of a training run: one folder a checkpoint, written whole or not at all and verified before it is used."""

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

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import SnnetError
from .files import sha256, sync_folder

_log = logging.getLogger(__name__)
_NAME = re.compile(r'step-(\d{8})')
_TENSORS, _VALUES, _SUMS = 'state.safetensors', 'state.json', 'SHA256SUMS'
FORMAT = 2


@dataclass
class State:
    """What a run is made of, apart from its settings.

    Attributes:
        modules: networks by name, such as the net and its moving average.
        optimizer: its moments.
        scaler: of gradients in float16.
    """

    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under a name of its own, without a copy."""
        found = {f'{name}.{key}': t for name, module in self.modules.items() for key, t in module.state_dict().items()}
        for index, row in self.optimizer.state_dict()['state'].items():
            found |= {f'optimizer.{index}.{key}': value for key, value in row.items() if isinstance(value, Tensor)}
        return found

    def values(self) -> dict[str, Any]:
        """Everything else, fit for JSON."""
        state = self.optimizer.state_dict()
        rows = {
            str(index): {key: value for key, value in row.items() if not isinstance(value, Tensor)}
            for index, row in state['state'].items()
        }
        return {'optimizer': {'state': rows, 'groups': state['param_groups']}, 'scaler': self.scaler.state_dict()}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Takes up what `tensors` and `values` gave."""
        for name, module in self.modules.items():
            module.load_state_dict(_under(name, tensors))
        state = {int(index): dict(row) for index, row in values['optimizer']['state'].items()}
        for key, tensor in _under('optimizer', tensors).items():
            index, _, leaf = key.partition('.')
            state[int(index)][leaf] = tensor
        self.optimizer.load_state_dict({'state': state, 'param_groups': values['optimizer']['groups']})
        self.scaler.load_state_dict(values['scaler'])


class Checkpoints:
    """The checkpoints in a folder: `step-00000120/` with safetensors, JSON and SHA-256 sums (as `sha256sum -c` reads).

    No state of a random generator is kept: every draw is keyed by the seed and its place (see `seeds`).

    Args:
        folder: holds them; made at the first save.
        keep: how many of the newest to keep; the one with the lowest loss stays beside them.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, state: State, values: dict[str, Any]) -> bool:
        """Writes the state after `step` steps; where there is no room says so and returns False.

        A crash or a full disk at any moment leaves the earlier checkpoints as they are.

        Args:
            step: how many steps are done.
            state: of the run.
            values: what else to keep; `loss` decides which checkpoint is the best.

        Raises:
            SnnetError: a weight or moment is not finite.
        """
        final = self.folder / f'step-{step:08}'
        if final.exists():  # verified when the run began, or written by it: equal bits
            return True
        tensors = {name: tensor.contiguous() for name, tensor in state.tensors().items()}
        _refuse_non_finite(tensors, step, self.folder)
        size = sum(tensor.nbytes for tensor in tensors.values())
        temporary = self.folder / f'.{final.name}.{os.getpid()}.tmp'
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear_away()
            free = shutil.disk_usage(self.folder).free
            if free < 1.05 * size:
                raise OSError(f'{free:,} bytes are free')
            _fill(temporary, tensors, {'format': FORMAT, 'step': step, **values, **state.values()})
            os.replace(temporary, final)
            sync_folder(self.folder)
        except (OSError, RuntimeError) as error:  # safetensors wraps what the system says
            shutil.rmtree(temporary, ignore_errors=True)
            _log.warning(
                'no checkpoint after step %d: %s wants %s bytes (%s); the run goes on', step, final, f'{size:,}', error
            )
            return False
        self._prune()
        return True

    def newest(self) -> dict[str, Any] | None:
        """Values of the newest checkpoint that verifies, or None; broken ones are set aside."""
        for step in sorted(self._steps(), reverse=True):
            path = self.folder / f'step-{step:08}'
            reason = _fault(path)
            if reason is None:
                return json.loads((path / _VALUES).read_text(encoding='utf-8'))
            aside = path.with_name(f'broken-{path.name}')
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            _log.warning('checkpoint %s is broken (%s): set aside as %s', path, reason, aside.name)
        return None

    def load(self, step: int, state: State, device: torch.device) -> None:
        """Takes up the checkpoint of this step, which `newest` has verified."""
        path = self.folder / f'step-{step:08}'
        values = json.loads((path / _VALUES).read_text(encoding='utf-8'))
        try:
            state.load(load_file(path / _TENSORS, device=str(device)), values)
        except (RuntimeError, KeyError, ValueError) as error:
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
            values = json.loads((self.folder / f'step-{step:08}' / _VALUES).read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return math.inf
        return math.inf if values.get('loss') is None else values['loss']

    def _clear_away(self) -> None:
        """Removes what killed processes left half written or half removed."""
        for path in self.folder.glob('.step-*.tmp'):
            shutil.rmtree(path, ignore_errors=True)


def _under(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = f'{name}.'
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _fill(folder: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Writes the three files of a checkpoint down to the disk."""
    folder.mkdir()
    save_file(tensors, folder / _TENSORS)
    (folder / _VALUES).write_text(json.dumps(values, indent=1), encoding='utf-8')
    sums = ''.join(f'{sha256(folder / name)}  {name}\n' for name in (_TENSORS, _VALUES))
    (folder / _SUMS).write_text(sums, encoding='utf-8')
    for name in (_TENSORS, _VALUES, _SUMS):
        with open(folder / name, 'rb') as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _fault(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint."""
    try:
        sums = (path / _SUMS).read_text(encoding='utf-8').splitlines()
        for name in (_TENSORS, _VALUES):
            if f'{sha256(path / name)}  {name}' not in sums:
                return f'{name} differs from its SHA-256 sum'
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
