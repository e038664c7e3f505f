"""Copies of networks on torch's meta device: they have shapes but no numbers, and cost no memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def meta_tensors(network: nn.Module, dtype: torch.dtype | None = None) -> dict[int, Any]:
    """The `memo` for `copy.deepcopy` that turns every parameter and buffer into one on the meta device.

    Args:
        network: the network to copy.
        dtype: type of the floating-point tensors in the copy; their own by default.
    """

    def empty(tensor: Tensor) -> Tensor:
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return torch.empty_like(tensor, device='meta', dtype=kind)

    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(empty(parameter), requires_grad=parameter.is_floating_point())
    for buffer in network.buffers():
        memo[id(buffer)] = empty(buffer)
    return memo
