"""The output folder of a training run: who owns it, whether its run may be resumed, and whether that makes sense."""

from __future__ import annotations

import fcntl
import re
from pathlib import Path
from typing import Any, TextIO

from ..config.parse import to_yaml
from ..config.sections import changes, flattened, to_flat
from ..errors import SnnetError
from ..utils.files import clear_temporaries, write_text
from ..utils.json_lines import JsonLines
from ..utils.parse_yaml import parse_yaml
from ..utils.read_limited import read_limited
from .attempts import Attempts
from .log_to import TrainingLog, open_logs, write_logs
from .train_settings import TrainSettings

_CONFIG, _LOCK = 'config.yaml', '.lock'
_LEFTOVER = re.compile(r'\.lock|\.config\.yaml\.\d+\.tmp|networks')
"""What a process leaves if it is killed before its settings are written, and the networks tuned before the run."""


class RunFolder:
    """The output folder of a run.

    Args:
        settings: of the run; `output` names the folder.
        world: processes of the run.
    """

    def __init__(self, settings: TrainSettings, world: int) -> None:
        self.settings, self.world = settings, world
        self.path = Path(settings.output)
        self.net = self.path / 'net'
        self.lines = JsonLines(self.path / 'log.jsonl')
        self.attempts = Attempts(self.path / 'attempts.jsonl')
        self._lock: TextIO | None = None
        self._logs: list[TrainingLog] = []

    def refuse_what_is_not_ours(self) -> None:
        """Refuses a folder that this run may not write to, before anything is written.

        Raises:
            SnnetError: the folder holds something else, or a run with other settings or another number of images
                per step; the message names what differs.
        """
        if not self.path.exists():
            return
        config = self.path / _CONFIG
        if not config.is_file():
            if self.path.is_dir() and all(_LEFTOVER.fullmatch(path.name) for path in self.path.iterdir()):
                return
            raise SnnetError(f"the output folder '{self.path}' holds something else: name another --output")
        if not self.settings.resume:
            raise SnnetError(f"the output folder '{self.path}' holds a run: continue it with --resume, or name another")
        try:
            before = flattened(TrainSettings, parse_yaml(read_limited(config)))
            world = int(before.pop('world'))
            then = int(before['batch_size']) * int(before['grad_accum_steps']) * world
        except (
            OSError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ):  # SnnetError is a ValueError
            raise SnnetError(
                f'{config} is damaged, so it is unknown which run this is: name another --output'
            ) from None
        differing = changes(self.settings, before)
        asked = self.settings.data.batch_size * self.settings.update.grad_accum_steps * self.world
        if asked == then:  # the same images per step, distributed differently
            differing = [text for text in differing if text.split()[0] not in ('batch_size', 'grad_accum_steps')]
        elif world != self.world and not differing:
            differing = [
                f'{world} processes took {then} images per step, {self.world} take {asked} (resume with '
                f'{world} processes, or set --batch-size so that a step has {then} images again)'
            ]
        if differing:
            raise SnnetError(f"'{self.path}' holds a run with other settings: {'; '.join(differing)}")

    def open(self) -> None:
        """Makes the folder, claims it until `close` and writes the settings (first rank only).

        Raises:
            SnnetError: the folder cannot be written, or another process trains in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / _LOCK, 'w')  # noqa: SIM115  # it stays open until `close`
        except OSError as error:
            raise SnnetError(f"the output folder '{self.path}' cannot be written: {error.strerror}") from None
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not handed on to loader processes
        except OSError:
            raise SnnetError(
                f"another process trains in '{self.path}': wait for it, or name another --output"
            ) from None
        for folder in (self.path, self.net):
            clear_temporaries(folder)
        self.note_settings()  # of an old run, too: the images may be distributed differently now

    def close(self) -> None:
        """Gives up the claim on the folder."""
        if self._lock is not None:
            self._lock.close()
        while self._logs:
            self._logs.pop().close()

    def __del__(self) -> None:
        self.close()

    def note_settings(self) -> None:
        """Writes the settings, without which the folder does not count as a run."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / _CONFIG, to_yaml(self.settings) + f'world: {self.world}\n')

    @property
    def noted(self) -> bool:
        """Whether the settings are in the folder."""
        return (self.path / _CONFIG).is_file()

    def note_attempt(self, step: int) -> None:
        """Records that the run continues from `step`, and opens the other logs (first rank only).

        Raises:
            SnnetError: torchrun has restarted it from this step several times without success.
        """
        self.attempts.begin(step)
        self._logs = open_logs(self.settings.log_to, self.path, to_flat(self.settings), step)

    def forget_lines_from(self, step: int) -> None:
        """Removes from log.jsonl what is about this step or a later one, and lines that name no step."""
        rows = self.lines.read()
        self.lines.rewrite([row for row in rows if isinstance(row.get('step'), int) and row['step'] < step])

    def log(self, row: dict[str, Any]) -> None:
        """Adds a row to log.jsonl, and to the other logs that the settings name."""
        self.lines.append(row)
        write_logs(self._logs, row)

    def note_error(self, rank: int, error: BaseException) -> None:
        """Records why a rank ends, for `note_attempt` of the next attempt."""
        if self.noted:  # a run has begun here
            self.attempts.note_error(rank, error)
