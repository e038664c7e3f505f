"""What a fault does in a process that has reached its place."""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from snnet.training.signals import StopRequest

PATIENCE = 120.0
"""Seconds after which a pause ends by itself, so that no process outlives its observer for long."""


@dataclass
class Fault:
    """What happens, and where.

    Attributes:
        point: 'start', 'step', 'loss', 'update' or 'file'.
        action: a name in `ACTIONS`.
        rank: on which rank; every one where None.
        at: at which step; for files the number of the operation among those that match, from 1.
        match: pattern of the operation and path, for files.
        since: operations on files count from this step on.
        last: the fault goes on to this step, and happens again after a restart.
        value: bytes of a limit.
        marker: file that tells that it happened.
    """

    point: str
    action: str
    rank: int | None = None
    at: int = 0
    match: str = ''
    since: int = -1
    last: int | None = None
    value: int = 0
    marker: str = ''
    seen: int = 0

    def applies(self, point: str, rank: int, step: int, operation: str) -> bool:
        """Whether this is the place."""
        if point != self.point or self.rank not in (None, rank):
            return False
        if point == 'file':
            if step < self.since or not re.search(self.match, operation):
                return False
            self.seen += 1
            return self.seen == self.at
        if self.last is not None:
            return self.at <= step <= self.last
        return point == 'start' or step == self.at

    def happen(self, rank: int, context: Any) -> Any:
        """Does it once; returns what replaces the context (a loss)."""
        marker = Path(f'{self.marker}.{rank}')
        if marker.exists() and self.last is None:
            return context
        marker.touch()
        return ACTIONS[self.action](self, context)


def _pause(fault: Fault, context: Any) -> Any:
    """Waits until the observer lets the process continue."""
    go, end = Path(f'{fault.marker}.go'), time.monotonic() + PATIENCE
    while not go.exists() and time.monotonic() < end:
        time.sleep(0.002)
    return context


def _await_signal(fault: Fault, context: Any) -> Any:
    """As `_pause`, and until a signal that asks the run to stop has come: torchrun passes it on after a while."""
    _pause(fault, context)
    request, end = getattr(signal.getsignal(signal.SIGTERM), '__self__', None), time.monotonic() + PATIENCE
    while isinstance(request, StopRequest) and request.received is None and time.monotonic() < end:
        time.sleep(0.002)
    return context


def _hang(fault: Fault, context: Any) -> Any:
    time.sleep(PATIENCE)
    return context


def _crash(fault: Fault, context: Any) -> Any:
    raise RuntimeError('a fault was injected here')


def _kill(fault: Fault, context: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at_byte(fault: Fault, context: Any) -> Any:
    """From now on a write beyond this byte of a file kills the process in the middle of it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    return _limit(fault, context)


def _limit(fault: Fault, context: Any) -> Any:
    """Files cannot grow beyond so many bytes, as on a full disk; 0 lifts the limit."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (fault.value or hard, hard))
    return context


def _nan_loss(fault: Fault, context: Any) -> Any:
    return context * float('nan')


def _nan_gradient(fault: Fault, context: Any) -> Any:
    """A finite loss with gradients that are not."""
    context.register_hook(lambda gradient: gradient * float('nan'))
    return context


def _drift(fault: Fault, context: Any) -> Any:
    """Moves one weight of one rank by a millionth."""
    with torch.no_grad():
        _small_weight(context).add_(1e-6)
    return context


def _nan_weight(fault: Fault, context: Any) -> Any:
    with torch.no_grad():
        _small_weight(context).fill_(float('nan'))
    return context


def _nan_moment(fault: Fault, context: Any) -> Any:
    for state in context.state.values():
        state['exp_avg'].view(-1)[0] = float('nan')
        break
    return context


ACTIONS: dict[str, Callable[[Fault, Any], Any]] = {
    'pause': _pause,
    'await signal': _await_signal,
    'hang': _hang,
    'crash': _crash,
    'kill': _kill,
    'die at byte': _die_at_byte,
    'limit': _limit,
    'nan loss': _nan_loss,
    'nan gradient': _nan_gradient,
    'nan weight': _nan_weight,
    'nan moment': _nan_moment,
    'drift': _drift,
}


def _small_weight(optimizer: Any) -> torch.Tensor:
    """The first weight of the net, as a view."""
    return optimizer.param_groups[0]['params'][0].view(-1)[:1]
