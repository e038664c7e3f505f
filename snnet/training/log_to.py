"""Training logs in TensorBoard and Weights & Biases, beside log.jsonl: off unless asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from ..errors import MissingExtra, SnnetError, did_you_mean

LOGS = ('tensorboard', 'wandb')
"""Where a run can log to."""


class TrainingLog(Protocol):
    """Receives the numbers of logged steps."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values of a step."""

    def close(self) -> None:
        """Writes what is left."""


class TensorBoardLog:
    """Event files in the folder `tensorboard` of a run.

    Args:
        folder: of the run.
        settings: of the run, logged as text.
        begin: the step that the run begins with or continues at; later ones of an earlier attempt are not shown.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], begin: int) -> None:
        _require('tensorboard')
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / 'tensorboard'), purge_step=begin or None)
        if not begin:
            self._writer.add_text('settings', '\n'.join(f'    {name}: {value}' for name, value in settings.items()))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs each value as a scalar."""
        for name, value in values.items():
            self._writer.add_scalar(f'train/{name}', value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WandbLog:
    """A run of Weights & Biases, continued under one id by all attempts at it.

    Its project is 'snnet' unless WANDB_PROJECT says otherwise; WANDB_MODE=offline keeps it on this machine.

    Args:
        folder: of the run; names it.
        settings: of the run.
        begin: the step that the run begins with or continues at.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], begin: int) -> None:
        wandb = _require('wandb')
        place = str(folder.resolve())
        self._run = wandb.init(
            project=os.environ.get('WANDB_PROJECT', 'snnet'), name=folder.name,
            id=sha256(place.encode()).hexdigest()[:16],
            resume='allow', dir=place, config=dict(settings),
        )  # fmt: skip

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values under the number of the step."""
        self._run.log({f'train/{name}': value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Writes what is left."""
        self._run.finish()


def check_logs(names: Sequence[str]) -> None:
    """Refuses names of logs that there are not, before a run begins.

    Raises:
        SnnetError: an unknown name.
        MissingExtra: the package of a log is not installed.
    """
    for name in names:
        if name not in LOGS:
            raise SnnetError(f"log_to is {' or '.join(LOGS)}, not '{name}'{did_you_mean(name, LOGS)}")
        _require(name)


def open_logs(names: Sequence[str], folder: Path, settings: Mapping[str, Any], begin: int) -> list[TrainingLog]:
    """The logs of a run (see `check_logs`)."""
    kinds: dict[str, type[TensorBoardLog] | type[WandbLog]] = {'tensorboard': TensorBoardLog, 'wandb': WandbLog}
    return [kinds[name](folder, settings, begin) for name in dict.fromkeys(names)]


def write_logs(logs: Sequence[TrainingLog], row: Mapping[str, Any]) -> None:
    """Hands the numbers of a row of log.jsonl to every log."""
    values = {
        name: float(value)
        for name, value in row.items()
        if name != 'step' and isinstance(value, int | float) and not isinstance(value, bool)
    }
    for log in logs:
        log.write(row['step'], values)


def _require(name: str) -> Any:
    try:
        if name == 'tensorboard':
            import tensorboard

            return tensorboard
        import wandb

        return wandb
    except ImportError as error:
        raise MissingExtra(f'--log-to {name}', [name], name, error) from error
