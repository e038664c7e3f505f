"""torchrun in a fork of this process, with ranks that are forks too: only the start of a rank is not torchrun's."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from .processes import fork, run_script


def run_agent(main: Callable[[], int], argv: Sequence[str], world: int, restarts: int) -> int:
    """Runs a script's function on ranks that torchrun's agent looks after; raises as torchrun does."""

    def start(handler: SubprocessHandler, args: tuple[str, ...], environment: dict[str, str]) -> Any:
        return _Rank(main, argv, environment)

    SubprocessHandler._popen = start  # type: ignore[method-assign, assignment]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world,
        run_id=str(os.getpid()),
        rdzv_backend='c10d',
        rdzv_endpoint='localhost:0',
        max_restarts=restarts,
        monitor_interval=0.1,
    )
    elastic_launch(config, main.__module__)()
    return 0


class _Rank:
    """A fork that looks like the `subprocess.Popen` that torchrun expects."""

    def __init__(self, main: Callable[[], int], argv: Sequence[str], environment: dict[str, str]) -> None:
        self.returncode: int | None = None
        self.pid = fork(lambda: _begin(main, argv, environment))

    def poll(self) -> int | None:
        """Exit status, or None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Exit status."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired('rank', timeout)
            time.sleep(0.01)
        return code


def _begin(main: Callable[[], int], argv: Sequence[str], environment: dict[str, str]) -> int:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # a fork inherits the agent's own handlers, a new program does not
    os.environ.update(environment)
    return run_script(main, argv)
