"""A BatchNorm whose gradients are right for tensors of every stride."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SafeBatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d, safe for inputs and gradients with a dimension of size 1.

    The stride of a dimension of size 1 has no meaning, but torch 2.15 uses it to tell memory formats apart: if the
    input is stored as NCHW and the gradient as NHWC with unusual strides, such as (L C, 1, C, 1) for (N, C, L, 1), its
    backward pass on the CPU takes both for NCHW and returns wrong gradients without an error. The same happens with
    the two exchanged. Here both get the strides that torch expects; nothing is copied.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes the channels of x (N, C, H, W)."""
        if torch.compiler.is_compiling():  # compilers generate their own backward pass
            return super().forward(x)
        y = super().forward(usual_strides(x))
        if y.requires_grad:
            y.register_hook(_usual_strides_or_none)  # type: ignore[no-untyped-call]  # torch does not annotate it
        return y


def usual_strides(x: Tensor) -> Tensor:
    """A view of x (N, C, H, W) whose dimensions of size 1 have the strides of the memory format that x is stored in."""
    if 1 not in x.shape or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return x
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(-1).view(n, h, w, c).permute(0, 3, 1, 2)  # reshape: dense, so a view


def _usual_strides_or_none(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else usual_strides(grad)  # autograd passes None where nothing depends on the output
