"""What a run is made of, apart from its settings: weights, moments and the rest of its optimizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SnnetError
from ..saving.tensor_files import with_aliases

_PLAIN = (bool, int, float, str, list, tuple, type(None))


@dataclass
class RunState:
    """What a run is made of, apart from its settings.

    Attributes:
        modules: networks by name, such as the net and its moving average.
        optimizer: its moments.
        scaler: of gradients in float16.
    """

    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, without a copy."""
        found = {f'{name}.{key}': t for name, module in self.modules.items() for key, t in module.state_dict().items()}
        for kind, rows in self._rows().items():
            for i, row in rows.items():
                found |= {f'{kind}.{i}.{key}': value for key, value in row.items() if isinstance(value, Tensor)}
        return found

    def values(self) -> dict[str, Any]:
        """Everything else, fit for JSON.

        Raises:
            SnnetError: the optimizer keeps lists of tensors or the like.
        """
        rows = self._rows()
        moments = {i: {k: v for k, v in row.items() if not isinstance(v, Tensor)} for i, row in rows['moment'].items()}
        # what else a group holds, such as a type, is given again by the settings
        groups = {i: {k: v for k, v in row.items() if isinstance(v, _PLAIN)} for i, row in rows['group'].items()}
        try:
            json.dumps(moments)
        except TypeError as error:
            name = type(self.optimizer).__name__
            raise SnnetError(f'{name} keeps what a checkpoint cannot hold ({error}): choose another --opt') from None
        return {'moment': moments, 'group': groups, 'scaler': self.scaler.state_dict()}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Takes up what `tensors` and `values` gave."""
        for name, module in self.modules.items():
            module.load_state_dict(with_aliases(_under(name, tensors), module.state_dict()))
        now = self.optimizer.state_dict()['param_groups']
        rows = {'moment': values['moment'], 'group': {i: now[int(i)] | row for i, row in values['group'].items()}}
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group['params']]
        for kind, found in rows.items():
            for key, tensor in _under(kind, tensors).items():
                i, _, leaf = key.partition('.')
                found[i][leaf] = _laid_out_as(parameters[int(i)], tensor) if kind == 'moment' else tensor
        state = {int(i): row for i, row in rows['moment'].items()}
        self.optimizer.load_state_dict({'state': state, 'param_groups': [*rows['group'].values()]})
        self.scaler.load_state_dict(values['scaler'])

    def _rows(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What the optimizer keeps of each parameter and of each group of them."""
        state = self.optimizer.state_dict()
        found = {'moment': state['state'].items(), 'group': enumerate(state['param_groups'])}
        return {kind: {str(i): row for i, row in rows} for kind, rows in found.items()}


def _under(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = f'{name}.'
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _laid_out_as(parameter: Tensor, moment: Tensor) -> Tensor:
    """A moment in its parameter's memory format, which fused optimizers take for granted without a look."""
    if moment.dim() < 2 or moment.shape != parameter.shape:
        return moment
    return torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)
