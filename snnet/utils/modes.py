"""Context managers for eval mode, frozen BatchNorm statistics and mixed precision."""

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
    """Puts every module into eval mode inside a `with` block and restores each module's mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def still_statistics(network: nn.Module) -> Iterator[None]:
    """Restores the running statistics of all BatchNorms after a `with` block, without changing their outputs.

    Needed where a backward pass repeats a forward pass: the statistics would otherwise count it twice.
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
    """Returns a context for mixed precision in the named type, or one that does nothing if `on` is false.

    Raises:
        SnnetError: the type is neither bfloat16 nor float16.
    """
    if dtype not in _TYPES:
        raise SnnetError(f"amp_dtype is one of {', '.join(_TYPES)}, not '{dtype}'")
    return torch.autocast(device.type, _TYPES[dtype]) if on else nullcontext()
