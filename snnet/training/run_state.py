"""What a run is made of, apart from its settings: weights, moments and the rest of its optimizer."""

from __future__ import annotations

import json
import math
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
        """Loads what `tensors` and `values` gave.

        Raises:
            ValueError, LookupError, TypeError, AttributeError, RuntimeError: they do not fit.
        """
        for name, module in self.modules.items():
            module.load_state_dict(with_aliases(_under(name, tensors), module.state_dict()))
        now = self.optimizer.state_dict()['param_groups']
        groups = {i: now[int(i)] | _like(row, now[int(i)]) for i, row in values['group'].items()}
        rows = {'moment': {i: _numbers(row) for i, row in values['moment'].items()}, 'group': groups}
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group['params']]
        for kind, found in rows.items():
            for key, tensor in _under(kind, tensors).items():
                i, _, leaf = key.partition('.')
                found[i][leaf] = _laid_out_as(parameters[int(i)], tensor) if kind == 'moment' else tensor
        state = {int(i): row for i, row in rows['moment'].items()}
        self.optimizer.load_state_dict({'state': state, 'param_groups': [*rows['group'].values()]})
        self.scaler.load_state_dict(_scale(values['scaler'], self.scaler.state_dict()))

    def _rows(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What the optimizer keeps of each parameter and of each group of them."""
        state = self.optimizer.state_dict()
        found = {'moment': state['state'].items(), 'group': enumerate(state['param_groups'])}
        return {kind: {str(i): row for i, row in rows} for kind, rows in found.items()}


def _like(row: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What a group of parameters holds, where each value is of the kind that the optimizer has there."""
    strange = [key for key, value in row.items() if not _is_like(value, now.get(key))]
    if strange:
        raise ValueError(f'{strange[0]} of a group of parameters is not like {now.get(strange[0])!r}')
    return row


def _is_like(value: Any, model: Any) -> bool:
    if isinstance(model, list | tuple):
        alike = isinstance(value, list | tuple) and len(value) == len(model)
        return alike and all(map(_is_like, value, model))
    if model is None:
        return isinstance(value, _PLAIN)
    if isinstance(model, bool | str):
        return isinstance(value, type(model))
    return value is None or _is_number(value)


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer keeps of a parameter beside tensors: numbers, or lists of them."""
    items = [x for value in row.values() for x in (value if isinstance(value, list) else [value])]
    if not all(x is None or isinstance(x, bool) or _is_number(x) for x in items):
        raise ValueError('what the optimizer keeps of a parameter is not a number')
    return row


def _scale(row: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What the scaler of gradients keeps: counts, and numbers that are not negative."""
    counts = [name for name, value in now.items() if isinstance(value, int)]
    sound = row.keys() == now.keys() and all(_is_number(value) and value >= 0 for value in row.values())
    if not sound or not all(isinstance(row[name], int) and row[name] < 2**31 for name in counts):
        raise ValueError(f'the scaler of gradients keeps {", ".join(now)}, each a number that is not negative')
    return row


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _under(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = f'{name}.'
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _laid_out_as(parameter: Tensor, moment: Tensor) -> Tensor:
    """A moment in its parameter's memory format, which fused optimizers assume without checking."""
    if moment.dim() < 2 or moment.shape != parameter.shape:
        return moment
    return torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)
