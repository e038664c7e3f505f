"""A BatchNorm in eval mode as a scale and a shift, exactly, and how its statistics are set."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def as_float64(tensor: Tensor) -> Tensor:
    """The values of a tensor in float64, detached; on the CPU if its device does not have that type."""
    return tensor.detach().to('cpu' if tensor.device.type == 'mps' else tensor.device, torch.float64)


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a BatchNorm computes in eval mode: y = scale x + shift for each channel, in float64.

    scale = gamma / sqrt(var + eps)    (C)
    shift = beta - mean scale          (C)
    """
    mean, var = running_statistics(norm)
    scale = as_float64(norm.weight) / (var + norm.eps).sqrt()
    return scale, as_float64(norm.bias) - mean * scale


def running_statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The running mean and variance of a BatchNorm in float64."""
    return as_float64(norm.get_buffer('running_mean')), as_float64(norm.get_buffer('running_var'))


def set_running_statistics(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor) -> None:
    """Sets the running mean and variance of a BatchNorm."""
    norm.get_buffer('running_mean').copy_(mean)
    norm.get_buffer('running_var').copy_(var)


def take_statistics_of(norm: nn.BatchNorm2d, x: Tensor) -> None:
    """Sets the running statistics of a BatchNorm to those of its input x (N, C, H, W)."""
    var, mean = torch.var_mean(_at_least_float32(x), dim=(0, 2, 3), correction=0)
    with torch.no_grad():
        set_running_statistics(norm, mean, var)


def output_for_zero(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What a BatchNorm with the input x (N, C, H, W) makes of a zero (C): beta - mean gamma / sqrt(var + eps).

    Mean and variance are those of the batch in train mode, where they take part in the gradient.
    """
    if norm.training:
        var, mean = torch.var_mean(_at_least_float32(x), dim=(0, 2, 3), correction=0)
    else:
        mean, var = norm.get_buffer('running_mean'), norm.get_buffer('running_var')
    return norm.bias - mean * norm.weight * (var + norm.eps).rsqrt()


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
