"""Faults inside a process: `--plugin` brings this file into every rank, $SNNET_FAULTS says what happens where.

A process reaches *points*: its start, the beginning of a step, the loss of a step, the update after it, and every
operation on a file. A fault names a point and what is done there. What has happened leaves a marker file, so that it
happens once however often the run is restarted, and so that the outside knows without looking at a clock.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from timm.scheduler.scheduler import Scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

from snnet.training.distillation import DistillationLoss
from tools.faults.actions import Fault


def _reach(point: str, context: Any = None, operation: str = '') -> Any:
    if _TRACE:
        with open(_TRACE, 'a') as file:
            file.write(f'{_RANK} {point} {_step} {operation}\n')
    for fault in _FAULTS:
        if fault.applies(point, _RANK, _step, operation):
            context = fault.happen(_RANK, context)
    return context


def _watch_steps() -> None:
    step_update, forward = Scheduler.step_update, DistillationLoss.forward

    def begin(self: Scheduler, num_updates: int, *args: Any, **named: Any) -> None:
        global _step
        _step = num_updates
        _reach('step')
        step_update(self, num_updates, *args, **named)

    def loss(self: DistillationLoss, *args: Any, **named: Any) -> Any:
        return _reach('loss', forward(self, *args, **named))

    Scheduler.step_update, DistillationLoss.forward = begin, loss  # type: ignore[method-assign]
    register_optimizer_step_post_hook(lambda optimizer, args, named: _reach('update', optimizer))


def _watched(path: str) -> bool:
    return path.startswith(_FOLDERS)


def _watch_files() -> None:
    """Makes points of all openings, renamings, makings, removals and syncings of watched files, each before it."""
    sync = os.fsync

    def seen(event: str, args: tuple[Any, ...]) -> None:
        if event == 'open' and isinstance(args[0], str) and _watched(args[0]):
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            _reach('file', operation=f'{"write" if writes else "read"} {args[0]}')
        elif event in ('os.rename', 'os.mkdir', 'os.remove', 'os.rmdir') and _watched(str(args[0])):
            _reach('file', operation=f'{event[3:]} {args[0]}')

    def fsync(file: Any) -> None:
        path = os.readlink(f'/proc/self/fd/{file if isinstance(file, int) else file.fileno()}')
        if _watched(path):
            _reach('file', operation=f'sync {path}')
        sync(file)

    sys.addaudithook(seen)
    os.fsync = fsync  # type: ignore[assignment]


_plan = json.loads(os.environ.get('SNNET_FAULTS', '{}'))
_RANK = int(os.environ.get('RANK', '0'))
_TRACE, _FOLDERS = _plan.get('trace', ''), tuple(_plan.get('folders', ()))
_FAULTS = [Fault(**fault) for fault in _plan.get('faults', [])]
_step = -1
if _plan:
    _watch_steps()
    _watch_files()
    _reach('start')
