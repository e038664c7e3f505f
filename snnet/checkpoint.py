"""The state of a training run in one file, written whole or not at all."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from .errors import SnnetError, reason_of
from .files import write_atomically
from .net import StitchableNet

_FREE = {'resume', 'output', 'workers', 'log_interval', 'device', 'data_dir', 'plugin'}
"""Settings that may change between the parts of a run: they do not change its result."""


class Checkpoint:
    """Saves and loads net, optimiser and gradient scaler.

    No state of a random generator is kept: every draw is keyed by the seed and its place (see `seeds`).

    Args:
        path: the file.
        net, optimizer, scaler: what is saved and loaded into.
    """

    def __init__(
        self, path: Path, net: StitchableNet, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        self.path, self.net, self.optimizer, self.scaler = path, net, optimizer, scaler

    def save(self, settings: dict[str, Any], epoch: int, step: int) -> None:
        """Writes the state after `epoch` epochs and `step` steps."""
        state = {
            'settings': settings,
            'epoch': epoch,
            'step': step,
            'net': self.net.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'scaler': self.scaler.state_dict(),
        }
        write_atomically(self.path, lambda path: torch.save(state, path))

    def load(self, settings: dict[str, Any]) -> tuple[int, int]:
        """Takes up the saved state; returns how many epochs and steps are done.

        Raises:
            SnnetError: the file cannot be read, or settings that change the result differ.
        """
        try:
            state = torch.load(self.path, map_location='cpu', weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise SnnetError(
                f'{self.path} cannot be read ({reason_of(error)}): start anew in another output folder'
            ) from None
        before = state['settings']
        changed = [name for name in settings if name not in _FREE and settings[name] != before.get(name)]
        if changed:
            listed = ', '.join(f'{name} was {before.get(name)!r}, is {settings[name]!r}' for name in changed)
            raise SnnetError(f'{self.path} belongs to other settings: {listed}')
        self.net.load_state_dict(state['net'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.scaler.load_state_dict(state['scaler'])
        return state['epoch'], state['step']
