"""Where the kernel of a convolution lands on its input: padding, stride and dilation, for it and for parts of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from timm.layers.padding import get_same_padding
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class KernelWindow:
    """The geometry of a convolution; every branch beside it slides over the same places.

    Attributes:
        channels: in, out.
        kernel, stride, dilation: rows and columns.
        groups: of channels.
        padding: left, right, top, bottom; None where it follows the input's size (timm's `Conv2dSame`).
        mode: of padding, in torch's words.
    """

    channels: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    mode: str = 'zeros'

    @classmethod
    def of(cls, conv: nn.Conv2d, follows_input: bool = False) -> KernelWindow:
        """The geometry of a convolution; `follows_input` where its padding depends on the size of the input."""
        kernel, dilation = _pair(conv.kernel_size), _pair(conv.dilation)
        padding: tuple[int, int, int, int] | None = None
        if conv.padding == 'same':
            (top, bottom), (left, right) = (_halves(d * (k - 1)) for k, d in zip(kernel, dilation, strict=True))
            padding = left, right, top, bottom
        elif conv.padding == 'valid':
            padding = 0, 0, 0, 0
        elif not follows_input:
            rows, columns = _pair(conv.padding)  # type: ignore[arg-type]  # the strings are dealt with
            padding = columns, columns, rows, rows
        channels = conv.in_channels, conv.out_channels
        return cls(channels, kernel, _pair(conv.stride), dilation, conv.groups, padding, conv.padding_mode)

    @property
    def inputs(self) -> int:
        """Channels that one output sees."""
        return self.channels[0] // self.groups

    @property
    def center(self) -> tuple[int, int]:
        """The tap in the middle of the kernel (before the middle of an even one)."""
        return (self.kernel[0] - 1) // 2, (self.kernel[1] - 1) // 2

    @property
    def own_tap(self) -> tuple[int, int] | None:
        """The tap that lies on the very place of the output; None where output and input have different places."""
        if self.stride != (1, 1):
            return None
        tap = []
        for i, (k, d) in enumerate(zip(self.kernel, self.dilation, strict=True)):
            whole = d * (k - 1)
            before, after = _halves(whole) if self.padding is None else self.padding[2 - 2 * i : 4 - 2 * i]
            if before + after != whole or before % d:
                return None
            tap.append(before // d)
        return tap[0], tap[1]

    def pads(self, size: torch.Size) -> tuple[int, int, int, int]:
        """Left, right, top and bottom padding of an input (N, C, H, W)."""
        if self.padding is not None:
            return self.padding
        (top, bottom), (left, right) = (
            _halves(get_same_padding(int(n), k, s, d))
            for n, k, s, d in zip(size[-2:], self.kernel, self.stride, self.dilation, strict=True)
        )
        return left, right, top, bottom

    def out_grid(self, size: torch.Size) -> tuple[int, int]:
        """Rows and columns of the output for an input (N, C, H, W)."""
        left, right, top, bottom = self.pads(size)
        rows, columns = (
            (n + extra - d * (k - 1) - 1) // s + 1
            for n, extra, k, s, d in zip(
                size[-2:], (top + bottom, left + right), self.kernel, self.stride, self.dilation, strict=True
            )
        )
        return rows, columns

    def slide(self, x: Tensor, weight: Tensor, at: tuple[int, int] = (0, 0)) -> Tensor:
        """Runs a kernel, the whole or a part whose first tap is tap `at` of the whole, over the padded input.

        Args:
            x: (N, C, H, W).
            weight: (out, in / groups, rows, columns).
            at: row and column within the whole kernel.
        """
        left, right, top, bottom = self.pads(x.shape)
        skip = [at[i] * self.dilation[i] for i in (0, 1)]
        spare = [(self.kernel[i] - at[i] - weight.shape[2 + i]) * self.dilation[i] for i in (0, 1)]
        if self.mode == 'zeros':
            left, right, top, bottom = left - skip[1], right - spare[1], top - skip[0], bottom - spare[0]
            if left == right >= 0 and top == bottom >= 0:
                return F.conv2d(x, weight, None, self.stride, (top, left), self.dilation, self.groups)
            x = F.pad(x, (left, right, top, bottom))  # where negative, it cuts off
        else:
            x = F.pad(x, (left, right, top, bottom), self.mode)
            x = x[..., skip[0] : x.shape[-2] - spare[0], skip[1] : x.shape[-1] - spare[1]]
        return F.conv2d(x, weight, None, self.stride, 0, self.dilation, self.groups)

    def average(self, x: Tensor) -> Tensor:
        """Means over the kernel's places of the padded input (N, C, H, W), channel by channel."""
        left, right, top, bottom = self.pads(x.shape)
        if max(left, right, top, bottom) > 0:
            x = F.pad(x, (left, right, top, bottom), 'constant' if self.mode == 'zeros' else self.mode)
        if self.dilation == (1, 1):
            return F.avg_pool2d(x, self.kernel, self.stride)
        weight = x.new_full((x.shape[1], 1, *self.kernel), 1 / math.prod(self.kernel))
        return F.conv2d(x, weight, None, self.stride, 0, self.dilation, x.shape[1])

    def flops(self, out: int, kernel: tuple[int, int], grid: tuple[int, int]) -> int:
        """Multiply-adds per image of `out` channels made by a kernel of this size from `inputs` channels each."""
        return out * self.inputs * math.prod(kernel) * math.prod(grid)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _halves(whole: int) -> tuple[int, int]:
    """Padding before and after: the odd one comes after."""
    return whole // 2, whole - whole // 2
