"""The branches of a convolution: DyRep's seven operations, of which the convolution itself is one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from ..utils.safe_batch_norm import SafeBatchNorm2d
from .batch_norm_algebra import as_float64, output_for_zero, scale_and_shift, take_statistics_of
from .branch import Branch
from .kernel_window import KernelWindow


class PointwiseKernel(Branch):
    """1 x 1: a kernel that covers the center of the window. Its subclasses cover a whole row or column."""

    whole_columns = whole_rows = False
    """Whether the kernel is as high, and as wide, as the window."""

    def __init__(self, window: KernelWindow) -> None:
        super().__init__(window)
        rows = window.kernel[0] if self.whole_columns else 1
        columns = window.kernel[1] if self.whole_rows else 1
        self.first_tap = 0 if self.whole_columns else window.center[0], 0 if self.whole_rows else window.center[1]
        self.weight = nn.Parameter(torch.empty(window.channels[1], window.inputs, rows, columns))

    @override
    def features(self, x: Tensor) -> Tensor:
        return self.window.slide(x, self.weight, self.first_tap)

    @override
    def linear(self) -> tuple[Tensor, Tensor]:
        (top, left), (rows, columns) = self.first_tap, self.weight.shape[2:]
        weight = as_float64(self.weight)  # (out, in / groups, rows, columns)
        whole = weight.new_zeros(*weight.shape[:2], *self.window.kernel)  # (out, in / groups, k, k)
        whole[:, :, top : top + rows, left : left + columns] = weight
        return whole, weight.new_zeros(len(weight))

    @override
    def flops(self, grid: tuple[int, int], out_grid: tuple[int, int]) -> int:
        rows, columns = self.weight.shape[2:]
        return self.window.flops(len(self.weight), (rows, columns), out_grid)


class RowKernel(PointwiseKernel):
    """1 x k."""

    whole_rows = True


class ColumnKernel(PointwiseKernel):
    """k x 1."""

    whole_columns = True


class PointwiseFirst(Branch):
    """A 1 x 1 convolution and a BatchNorm, then a linear step over the window.

    The 1 x 1 convolution sees the unpadded input. The second step pads its input with what the inner BatchNorm makes
    of zero, c, so that the two steps equal one convolution of the input padded with zeros.

    Args:
        window: of the convolution beside which the branch stands.
        width: channels between the two steps.
    """

    def __init__(self, window: KernelWindow, width: int) -> None:
        super().__init__(window)
        self.first = nn.Parameter(torch.empty(width, window.inputs, 1, 1))
        self.inner = SafeBatchNorm2d(width)

    def second(self, z: Tensor) -> Tensor:
        """The second step, with zeros for padding: (N, width, H, W) to (N, out, H', W')."""
        raise NotImplementedError

    def second_of_constant(self, c: Tensor) -> Tensor:
        """The second step for a map that is the same everywhere: (1, width, 1, 1) to (1, out, 1, 1)."""
        raise NotImplementedError

    @override
    def features(self, x: Tensor) -> Tensor:
        """By linearity, z padded with c gives what z - c padded with zeros gives, plus what a map of c gives."""
        u = F.conv2d(x, self.first, groups=self.window.groups)  # (N, width, H, W)
        z = self.inner(u)
        if self.window.mode != 'zeros' or not any(self.window.pads(x.shape)):
            return self.second(z)
        c = output_for_zero(self.inner, u).to(z.dtype)[None, :, None, None]  # (1, width, 1, 1)
        return self.second(z - c) + self.second_of_constant(c)

    def first_linear(self) -> tuple[Tensor, Tensor]:
        """The first step in eval mode as a matrix (width, in / groups) and a bias (width), in float64."""
        scale, shift = scale_and_shift(self.inner)
        return as_float64(self.first)[:, :, 0, 0] * scale[:, None], shift

    @override
    def calibrate(self, x: Tensor) -> None:
        take_statistics_of(self.inner, F.conv2d(x, self.first, groups=self.window.groups))
        super().calibrate(x)


class PointwiseThenKernel(PointwiseFirst):
    """1 x 1, then k x k.

    Args:
        window: of the convolution beside which the branch stands.
        width: channels between the two steps; as many as come in if None.
    """

    def __init__(self, window: KernelWindow, width: int | None = None) -> None:
        width = window.channels[0] if width is None else width
        super().__init__(window, width)
        self.weight = nn.Parameter(torch.empty(window.channels[1], width // window.groups, *window.kernel))

    @override
    def second(self, z: Tensor) -> Tensor:
        return self.window.slide(z, self.weight)

    @override
    def second_of_constant(self, c: Tensor) -> Tensor:
        return F.conv2d(c.expand(-1, -1, *self.window.kernel), self.weight, groups=self.window.groups)

    @override
    def linear(self) -> tuple[Tensor, Tensor]:
        """In each group, W[o,i,r,c] = sum_m V[o,m,r,c] A[m,i] and b[o] = sum_{m,r,c} V[o,m,r,c] a[m]."""
        matrix, shift = self.first_linear()  # (width, in / groups), (width)
        second, groups = as_float64(self.weight), self.window.groups  # (out, width / groups, rows, columns)
        weights, biases = [], []
        for v, a, b in zip(second.chunk(groups), matrix.chunk(groups), shift.chunk(groups), strict=True):
            weights.append(torch.einsum('omrc,mi->oirc', v, a))  # (out / groups, in / groups, rows, columns)
            biases.append(torch.einsum('omrc,m->o', v, b))  # (out / groups)
        return torch.cat(weights), torch.cat(biases)

    @override
    def flops(self, grid: tuple[int, int], out_grid: tuple[int, int]) -> int:
        first = self.window.flops(len(self.first), (1, 1), grid)
        return first + self.weight.numel() * math.prod(out_grid)


class PointwiseThenAverage(PointwiseFirst):
    """1 x 1, then the mean over the window."""

    def __init__(self, window: KernelWindow) -> None:
        super().__init__(window, window.channels[1])

    @override
    def second(self, z: Tensor) -> Tensor:
        return self.window.average(z)

    @override
    def second_of_constant(self, c: Tensor) -> Tensor:
        return c

    @override
    def linear(self) -> tuple[Tensor, Tensor]:
        matrix, shift = self.first_linear()  # (out, in / groups), (out)
        kernel = self.window.kernel
        return (matrix / math.prod(kernel))[:, :, None, None].expand(-1, -1, *kernel).contiguous(), shift

    @override
    def flops(self, grid: tuple[int, int], out_grid: tuple[int, int]) -> int:
        return self.window.flops(len(self.first), (1, 1), grid)


class IdentityBranch(Branch):
    """The BatchNorm alone."""

    @classmethod
    @override
    def obstacle(cls, window: KernelWindow) -> str | None:
        if window.channels[0] != window.channels[1]:
            return f'{window.channels[0]} channels become {window.channels[1]}'
        if window.own_tap is None:
            return 'its output has other places than its input (stride or padding)'
        return None

    @override
    def features(self, x: Tensor) -> Tensor:
        return x

    @override
    def linear(self) -> tuple[Tensor, Tensor]:
        tap, out = self.window.own_tap, self.window.channels[1]
        assert tap is not None  # see obstacle
        gamma = as_float64(self.norm.weight)
        whole = gamma.new_zeros(out, self.window.inputs, *self.window.kernel)
        channel = torch.arange(out, device=gamma.device)
        whole[channel, channel % self.window.inputs, tap[0], tap[1]] = 1
        return whole, gamma.new_zeros(out)

    @override
    def flops(self, grid: tuple[int, int], out_grid: tuple[int, int]) -> int:
        return 0


CONVOLUTION: dict[str, type[Branch]] = {
    '1x1': PointwiseKernel,
    '1x1_kxk': PointwiseThenKernel,
    '1x1_avg': PointwiseThenAverage,
    '1xk': RowKernel,
    'kx1': ColumnKernel,
    'identity': IdentityBranch,
}
"""The branches of a convolution by kind; with the convolution itself, k x k, they are DyRep's seven."""

DBB = ('1x1', '1x1_kxk', '1x1_avg')
"""The kinds that make the Diverse Branch Block of four branches, with the convolution itself."""
