"""Where a fault is tried: a folder, a keyed generator, tiny runs, and what they are compared with."""

from __future__ import annotations

import fcntl
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import eval_stitches
import train

from . import check
from .launch import Run

PLUGIN = Path(__file__).parent / 'plugin.py'
STEPS, INTERVAL = 24, 5
TINY: dict[str, Any] = {
    'anchors': 'test_vit,test_vit2',
    'pretrained': False,
    'num_classes': 4,
    'img_size': 32,
    'dataset': 'generated/32',
    'workers': 0,
    'epochs': 3,
    'warmup_epochs': 0,
    'teacher': 'none',
    'init_samples': 8,
    'log_interval': 1,
    'checkpoint_steps': INTERVAL,
    'checkpoint_keep': 3,
    'timeout': 60,
    'device': 'cpu',
    'plugin': str(PLUGIN),
}
IMAGES_A_STEP = 4
NEUTRAL = {'workers', 'max_skips', 'check_steps', 'timeout'}
"""Settings that do not change how an undisturbed run ends."""


@dataclass
class Lab:
    """One injection.

    Attributes:
        folder: its own.
        shared: of all injections, for runs to compare with.
        random: what, when and where; keyed by the seed and the number of the injection.
        lost: steps that had to be repeated.
    """

    folder: Path
    shared: Path
    random: random.Random
    lost: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)

    @property
    def output(self) -> Path:
        """Folder of the run under test."""
        return self.folder / 'run'

    def fault(self, point: str, action: str, **more: Any) -> str:
        """Plans a fault for the runs that start from now on; returns the name of its marker."""
        name = f'fault-{len(self.faults)}'
        self.faults.append({'point': point, 'action': action, 'marker': str(self.folder / name), **more})
        return name

    def train(self, world: int = 1, restarts: int | None = None, program: bool = False, **changes: Any) -> Run:
        """Starts the run under test, or continues it.

        Args:
            world: processes.
            restarts: with a number, under torchrun, which restarts them so often.
            program: with torchrun as a program of its own rather than a fork.
            **changes: settings other than those of `TINY`.
        """
        settings = {'output': self.output, 'batch_size': IMAGES_A_STEP // world, **changes}
        return self._run(train.main, arguments(settings), world, restarts, program)

    def evaluate(self, net: Path, output: Path) -> Run:
        """Starts an evaluation, or continues it."""
        settings = {'output': output, 'dataset': 'generated/24', 'batch_size': 4, 'workers': 0, 'device': 'cpu'}
        argv = [str(net), *_flags({**settings, 'plugin': PLUGIN})]
        return self._run(eval_stitches.main, argv)

    def finish(self, world: int = 1, **changes: Any) -> None:
        """Continues the run under test to its end, which must be that of the undisturbed run.

        Raises:
            Violation: it is not.
        """
        run = self.train(world, **changes)
        codes = run.wait()
        check.require(not any(codes), f'the run did not go on: {codes}: {run.said()[-2000:]}')
        check.whole(self.output, self.reference(world, **changes))
        self.count_lost()

    def count_lost(self) -> None:
        """Counts steps that the first rank began more often than once."""
        steps = self.steps()
        self.lost = len(steps) - len(set(steps))

    def steps(self) -> list[int]:
        """Steps whose update the first rank made, in order of time."""
        trace = self.folder / 'trace'
        lines = [line.split() for line in trace.read_text().splitlines()] if trace.exists() else []
        return [int(step) for rank, point, step, *_ in lines if (rank, point) == ('0', 'update')]

    def reference(self, world: int = 1, **changes: Any) -> Path:
        """Output of an undisturbed run."""
        changes = {name: value for name, value in changes.items() if name not in NEUTRAL}
        return self.prepared(f'whole {world} {changes}', lambda lab: lab._train_whole(world, changes)) / 'run'

    def stopped(self, world: int = 1, **changes: Any) -> None:
        """Makes the run under test one that was killed in step 17, with checkpoints after 5, 10 and 15 steps."""
        made = self.prepared(f'stopped {world} {changes}', lambda lab: lab._train_and_kill(world, changes))
        shutil.copytree(made / 'run', self.output)

    def operations(self, world: int, pattern: str) -> int:
        """How many operations on files that match does an undisturbed run make?"""
        trace = self.reference(world).parent / 'trace'
        lines = (line.split(' ', 3) for line in trace.read_text().splitlines())
        found = [line[3] for line in lines if line[0] == '0' and line[1] == 'file' and re.search(pattern, line[3])]
        return len(found)

    def _run(
        self,
        main: Callable[[], int],
        argv: list[str],
        world: int = 1,
        restarts: int | None = None,
        program: bool = False,
    ) -> Run:
        folders = [str(self.output), str(self.folder / 'net')]
        plan = {'faults': self.faults, 'trace': str(self.folder / 'trace'), 'folders': folders}
        return Run(main, argv, world, self.folder, plan, restarts, program)

    def prepared(self, title: str, make: Callable[[Lab], None]) -> Path:
        """A folder made once for all injections."""
        folder = self.shared / ''.join(c if c.isalnum() else '-' for c in title)
        with _locked(folder.with_suffix('.lock')):
            if not (folder / 'ready').exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(Lab(folder, self.shared, random.Random(0)))
                (folder / 'ready').touch()
        return folder

    def _train_whole(self, world: int, changes: dict[str, Any]) -> None:
        run = self.train(world, **changes)
        codes = run.wait()
        check.require(not any(codes), f'an undisturbed run failed: {codes}: {run.said()[-3000:]}')

    def _train_and_kill(self, world: int, changes: dict[str, Any]) -> None:
        self.fault('step', 'kill', at=17)
        codes = self.train(world, **changes).wait()
        check.require(any(codes), 'the run was not killed')


def write_pictures(folder: Path) -> None:
    """Eight noisy pictures in each of four classes."""
    pixels = np.random.default_rng(0)
    for label in range(4):
        for number in range(8):
            path = folder / 'train' / f'class{label}' / f'{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)


def flip_bit(file: Path, random: random.Random) -> None:
    """Flips one bit at a random place of a file."""
    content = bytearray(file.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    file.write_bytes(content)


def arguments(changes: dict[str, Any]) -> list[str]:
    """The command line of a tiny run; a setting that is None is left out."""
    return _flags({**TINY, **changes})


def _flags(settings: dict[str, Any]) -> list[str]:
    words = []
    for name, value in settings.items():
        flag = name.replace('_', '-')
        if isinstance(value, bool):
            words.append(f'--{flag}' if value else f'--no-{flag}')
        elif value is not None:
            words += [f'--{flag}', str(value)]
    return words


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
