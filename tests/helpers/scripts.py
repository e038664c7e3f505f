"""The scripts at the top of the repository, run in processes that are forked with the package already imported."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from snnet.cli.main import main as snnet_command
from tests.helpers.runs import forkserver

ROOT = Path(__file__).parents[2]


class Script:
    """A script that runs, such as `Script('train.py', '--config', file)`, on one rank or on several.

    A fresh interpreter would spend some four seconds of CPU on imports; a fork spends none.
    """

    def __init__(self, script: str, *args: Any, ranks: int = 1, folder: Path = ROOT) -> None:
        self.args = [script, *map(str, args)]
        self._files = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._files.name) / name for name in ('stdout', 'stderr'))
        port = free_port()
        self._processes: list[ForkServerProcess] = []
        for rank in range(ranks):
            variables = _variables(rank, ranks, port) if ranks > 1 else {}
            process = forkserver().Process(
                target=_run, args=(self.args, variables, folder, str(self._out), str(self._err)), daemon=False
            )
            process.start()
            self._processes.append(process)

    @property
    def running(self) -> bool:
        return any(process.is_alive() for process in self._processes)

    def terminate(self) -> None:
        for process in self._processes:
            process.terminate()

    def end(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Waits for the end; the exit code is the first one that is not 0."""
        try:
            for process in self._processes:
                process.join(timeout)
        finally:
            for process in self._processes:
                process.kill()
        codes = [process.exitcode for process in self._processes]
        code = next((code for code in codes if code), 0)
        texts = [path.read_text() if path.exists() else '' for path in (self._out, self._err)]
        self._files.cleanup()
        return subprocess.CompletedProcess(self.args, code, *texts)


def run_script(
    script: str, *args: Any, check: bool = True, ranks: int = 1, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Runs a script, or the command `snnet`, to its end in a folder; `check` expects exit code 0."""
    done = Script(script, *args, ranks=ranks, folder=folder).end()
    assert not check or done.returncode == 0, done.stderr
    return done


def free_port() -> int:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


def _variables(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun tells its processes."""
    ranks = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': world, 'LOCAL_WORLD_SIZE': world}
    values = {**ranks, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    return {name: str(value) for name, value in values.items()}


def _run(args: list[str], variables: Mapping[str, str], folder: Path, out: str, err: str) -> None:
    for file, number in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.update(variables)
    os.chdir(folder)
    torch.set_num_threads(1)
    if args[0] == 'snnet':
        sys.exit(snnet_command(args[1:]))
    sys.argv = [str(ROOT / args[0]), *args[1:]]
    sys.path.insert(0, str((ROOT / args[0]).parent))
    runpy.run_path(sys.argv[0], run_name='__main__')
