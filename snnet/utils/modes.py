"""Eval mode or still statistics for a while, and mixed precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..errors import SnnetError

_TYPES = {'bfloat16': torch.bfloat16, 'float16': torch.float16}


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Puts every module into eval mode within a `with` block and each back into its own mode after it."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def still_statistics(network: nn.Module) -> Iterator[None]:
    """Puts the batch norms' running statistics back after a `with` block; what they put out is the same.

    A pass that a backward pass runs again would otherwise count twice.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, before, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, before, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def autocast(on: bool, dtype: str, device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision in a type given by name, or a context that does nothing.

    Raises:
        SnnetError: another type than bfloat16 or float16.
    """
    if dtype not in _TYPES:
        raise SnnetError(f"amp_dtype is one of {', '.join(_TYPES)}, not '{dtype}'")
    return torch.autocast(device.type, _TYPES[dtype]) if on else nullcontext()
