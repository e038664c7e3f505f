"""Training runs as forks of this process, which has imported torch already: a run costs what it computes."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import util
from pathlib import Path
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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
    """

    def __init__(
        self,
        main: Callable[[], int],
        argv: Sequence[str],
        world: int,
        folder: Path,
        plan: dict[str, Any],
        restarts: int | None = None,
    ) -> None:
        self.folder = folder
        self.log = folder / f'said-{len(list(folder.glob("said-*")))}.txt'
        self.codes: dict[int, int] = {}
        common = {'SNNET_FAULTS': json.dumps(plan), 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'}
        if restarts is not None:
            self.pids = [_fork(lambda: _agent(main, argv, world, restarts), self.log, common)]
            return
        self.pids = []
        port = str(_free_port())
        for rank in range(world):
            place = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': world, 'LOCAL_WORLD_SIZE': world}
            more = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, **{k: str(v) for k, v in place.items()}}
            self.pids.append(_fork(lambda: _script(main, argv), self.log, {**common, **(more if world > 1 else {})}))

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
            Hang: it does not come, or a process ends before.
        """
        end = time.monotonic() + LIMIT
        while not condition():
            self._reap()
            if len(self.codes) == len(self.pids):
                raise Hang(f'the run ended with {self.codes} before it came {what}: {self.said()[-2000:]}')
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


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    try:
        return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    except OSError:
        return []


def adopt_orphans() -> None:
    """Makes this process the parent of grandchildren whose parent dies, so that none is overlooked."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def left_over(patience: float) -> list[int]:
    """Children of this process that do not end by themselves in so many seconds; they are killed."""
    end = time.monotonic() + patience
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return []
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    rest = children(os.getpid())
    for pid in rest:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return rest


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def fork(work: Callable[[], int]) -> int:
    """Runs a function in a fork of this process; returns the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = work()
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
    try:  # what the interpreter does at its end, which os._exit leaves out
        threading._shutdown()  # type: ignore[attr-defined]
        util._exit_function()  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _fork(work: Callable[[], int], log: Path, environment: dict[str, str]) -> int:
    def child() -> int:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(environment)
        faulthandler.register(signal.SIGUSR2)
        return work()

    return fork(child)


def _script(main: Callable[[], int], argv: Sequence[str]) -> int:
    torch.set_num_threads(1)
    sys.argv = [main.__module__ + '.py', *argv]
    return main()


def _rank_of_agent(main: Callable[[], int], argv: Sequence[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # the agent's own handlers, which a fork inherits
    sys.exit(_script(main, argv))


def _agent(main: Callable[[], int], argv: Sequence[str], world: int, restarts: int) -> int:
    """What torchrun does, with ranks that are forks."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world,
        run_id=str(os.getpid()),
        rdzv_backend='c10d',
        rdzv_endpoint='localhost:0',
        max_restarts=restarts,
        monitor_interval=0.1,
        start_method='fork',
    )
    elastic_launch(config, _rank_of_agent)(main, argv)
    return 0
