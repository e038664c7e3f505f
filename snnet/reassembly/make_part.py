"""Makes the new parts of a reassembled network with random weights drawn from a separate generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..stitching.stitch_layer import StitchLayer

Part = TypeVar('Part', bound=nn.Module)


def make_part(make: Callable[[], Part], like: Tensor, generator: torch.Generator) -> Part:
    """Makes a part on the device and in the dtype of a tensor, with torch's usual initialization.

    Weights are drawn from `generator`; torch's global generator is not touched.

    Args:
        make: builds the part, on the meta device.
        like: a tensor of the network that the part belongs to; on the meta device, no weights are drawn.
        generator: on the CPU.
    """
    with torch.device('meta'):
        part = make()
    part.to_empty(device=like.device).to(like.dtype)
    if like.is_meta:
        return part
    for module in part.modules():
        if isinstance(module, StitchLayer):
            module.reset_parameters(generator)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            bound = 1 / math.sqrt(module.weight[0].numel())
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
        elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.reset_parameters()
    return part
