"""Processes that are forks of this one, which has already imported torch, so a run costs only what it computes."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import util
from pathlib import Path

import torch


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    try:
        return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    except OSError:
        return []


def adopt_orphans() -> None:
    """Makes this process the parent of grandchildren whose parent dies, so none is overlooked."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def left_over(patience: float) -> list[int]:
    """Children of this process that do not exit within so many seconds; they are killed."""
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


def fork_into(work: Callable[[], int], log: Path, environment: dict[str, str]) -> int:
    """Runs a function in a fork that has its own session, environment and output file."""

    def child() -> int:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(environment)
        faulthandler.register(signal.SIGUSR2)
        return work()

    return fork(child)


def run_script(main: Callable[[], int], argv: Sequence[str]) -> int:
    """Runs a script's function as if it had been started from the command line."""
    torch.set_num_threads(1)
    sys.argv = [main.__module__ + '.py', *argv]
    return main()
