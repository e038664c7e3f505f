"""Runs of a script that are watched: where they are, signals to them, how they end, and whether they hang."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .check import Violation
from .forked_torchrun import run_agent
from .processes import fork_into, run_script

LIMIT = 90.0
"""Seconds after which a run counts as hanging."""


class Hang(Exception):
    """A process did not end, or did not get where it was expected, in time."""


class Run:
    """A run of a script in one process or more, each a fork of this one.

    Args:
        main: the script's function; returns the exit status.
        argv: its command line.
        world: processes.
        folder: for what the run says, and the markers of its faults.
        plan: faults for `plugin`.
        restarts: with a number, torchrun's agent looks after the ranks and restarts them so often.
        program: torchrun is started from a command line.
    """

    def __init__(
        self,
        main: Callable[[], int],
        argv: Sequence[str],
        world: int,
        folder: Path,
        plan: dict[str, Any],
        restarts: int | None = None,
        program: bool = False,
    ) -> None:
        self.folder = folder
        self.log = folder / f'said-{len(list(folder.glob("said-*")))}.txt'
        self.codes: dict[int, int] = {}
        common = {'SNNET_FAULTS': json.dumps(plan), 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'}
        if restarts is not None:
            start = _torchrun if program else run_agent
            self.pids = [fork_into(lambda: start(main, argv, world, restarts), self.log, common)]
            return
        place = {
            'WORLD_SIZE': world,
            'LOCAL_WORLD_SIZE': world,
            'MASTER_ADDR': '127.0.0.1',
            'MASTER_PORT': _free_port(),
        }
        self.pids = []
        for rank in range(world):
            own = {**place, 'RANK': rank, 'LOCAL_RANK': rank} if world > 1 else {}
            environment = common | {name: str(value) for name, value in own.items()}
            self.pids.append(fork_into(lambda: run_script(main, argv), self.log, environment))

    def reached(self, marker: str, ranks: Sequence[int] = (0,)) -> None:
        """Waits until these ranks are at a fault.

        Raises:
            Hang: they do not get there.
        """
        wanted = [self.folder / f'{marker}.{rank}' for rank in ranks]
        self.until(lambda: all(path.exists() for path in wanted), f'to reach the fault {marker}')

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for progress.

        Raises:
            Hang: it does not come.
            Violation: the processes end before.
        """
        end = time.monotonic() + LIMIT
        while not condition():
            self._reap()
            if len(self.codes) == len(self.pids):
                raise Violation(f'the run ended with {self.codes} before it came {what}: {self.said()[-2000:]}')
            if time.monotonic() > end:
                self._give_up(what)
            time.sleep(0.002)

    def release(self, marker: str) -> None:
        """Lets the ranks that pause at a fault go on."""
        (self.folder / f'{marker}.go').touch()

    def signal(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Sends a signal to ranks; to all of them where none are named."""
        for pid in self.pids if ranks is None else [self.pids[rank] for rank in ranks]:
            if pid not in self.codes:
                os.kill(pid, number)

    def wait(self, limit: float = LIMIT) -> list[int]:
        """Exit statuses by rank; when one rank fails the others are told to stop, as torchrun does.

        Raises:
            Hang: a process does not end in time; it is killed after its stacks have been written.
        """
        end, told = time.monotonic() + limit, False
        while len(self.codes) < len(self.pids):
            self._reap()
            if any(self.codes.values()) and not told:
                self.signal(signal.SIGTERM)
                told = True
            if time.monotonic() > end:
                self._give_up('to its end')
            time.sleep(0.002)
        return [self.codes[pid] for pid in self.pids]

    def said(self) -> str:
        """What the processes wrote on their terminal."""
        return self.log.read_text(errors='replace')

    def _reap(self) -> None:
        for pid in self.pids:
            if pid not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)

    def _give_up(self, what: str) -> None:
        self.signal(signal.SIGUSR2)  # faulthandler writes the stacks
        time.sleep(0.5)
        self.signal(signal.SIGKILL)
        raise Hang(f'did not come {what}: {self.said()[-4000:]}')


def _torchrun(main: Callable[[], int], argv: Sequence[str], world: int, restarts: int) -> int:
    """Becomes torchrun."""
    words = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    words += [f'--nproc_per_node={world}', f'--max-restarts={restarts}', str(sys.modules[main.__module__].__file__)]
    os.execv(sys.executable, [*words, *argv])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]
