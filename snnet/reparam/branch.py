"""What every branch has in common: something linear over a kernel's window, then a BatchNorm."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..utils.safe_batch_norm import SafeBatchNorm2d
from .batch_norm_algebra import scale_and_shift, take_statistics_of
from .kernel_window import KernelWindow


class Branch(nn.Module):
    """Something linear over a window, then a BatchNorm; in eval mode it equals one convolution with bias.

    Subclasses say what the linear part is (`features`), which kernel and bias it equals (`linear`) and what it costs
    (`flops`).

    Args:
        window: of the convolution beside which the branch stands.
    """

    def __init__(self, window: KernelWindow) -> None:
        super().__init__()
        self.window = window
        self.norm = SafeBatchNorm2d(window.channels[1])

    @classmethod
    def obstacle(cls, window: KernelWindow) -> str | None:
        """Why a window cannot have such a branch; None if it can."""
        return None

    def draw(self, generator: torch.Generator | None) -> None:
        """Draws the weights as torch's convolutions do: uniform within 1 / sqrt(fan in), on the CPU."""
        for parameter in self.parameters():
            if parameter.ndim == 4:
                bound = 1 / math.sqrt(parameter[0].numel())
                with torch.no_grad():
                    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))

    def features(self, x: Tensor) -> Tensor:
        """The input of the last BatchNorm: (N, in, H, W) to (N, out, H', W')."""
        raise NotImplementedError

    def linear(self) -> tuple[Tensor, Tensor]:
        """Kernel (out, in / groups, rows, columns) and bias (out) of `features` in eval mode, in float64."""
        raise NotImplementedError

    def flops(self, grid: tuple[int, int], out_grid: tuple[int, int]) -> int:
        """Multiply-adds per image, those of the convolutions alone.

        Args:
            grid: rows and columns of the input.
            out_grid: rows and columns of the output.
        """
        raise NotImplementedError

    def calibrate(self, x: Tensor) -> None:
        """Gives the BatchNorms the statistics that they have for an input x (N, in, H, W)."""
        take_statistics_of(self.norm, self.features(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H', W')."""
        y: Tensor = self.norm(self.features(x))
        return y

    def fold(self) -> tuple[Tensor, Tensor]:
        """Kernel (out, in / groups, rows, columns) and bias (out) of the branch in eval mode, in float64.

        The BatchNorm scales both: W' = scale W and b' = scale b + shift.
        """
        weight, bias = self.linear()
        scale, shift = scale_and_shift(self.norm)
        return weight * scale[:, None, None, None], bias * scale + shift
