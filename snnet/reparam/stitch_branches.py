"""The branches of a stitch layer, which is one matrix: each folds into it and costs nothing afterwards."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from .batch_norm_algebra import as_float64
from .branch import Branch
from .convolution_branches import IdentityBranch, PointwiseKernel, PointwiseThenKernel
from .kernel_window import KernelWindow


class LowRankBranch(PointwiseThenKernel):
    """1 x 1, then 1 x 1, with a quarter of the channels of the narrower side between them."""

    def __init__(self, window: KernelWindow) -> None:
        super().__init__(window, max(1, min(window.channels) // 4))


class GroupedBranch(Branch):
    """1 x 1 in four groups of channels, or in two where four do not fit."""

    def __init__(self, window: KernelWindow) -> None:
        super().__init__(window)
        self.groups = math.gcd(*window.channels, 4)
        self.weight = nn.Parameter(torch.empty(window.channels[1], window.channels[0] // self.groups, 1, 1))

    @classmethod
    @override
    def obstacle(cls, window: KernelWindow) -> str | None:
        if math.gcd(*window.channels, 4) == 1:
            return f'{window.channels[0]} and {window.channels[1]} channels do not fall into equal groups'
        return None

    @override
    def features(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, groups=self.groups)

    @override
    def linear(self) -> tuple[Tensor, Tensor]:
        blocks = as_float64(self.weight)[:, :, 0, 0].chunk(self.groups)
        whole: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]  # torch does not annotate it
        return whole[:, :, None, None], whole.new_zeros(len(whole))

    @override
    def flops(self, grid: tuple[int, int], out_grid: tuple[int, int]) -> int:
        return self.weight.numel() * math.prod(grid)


STITCH: dict[str, type[Branch]] = {
    '1x1': PointwiseKernel,
    'low_rank': LowRankBranch,
    'grouped': GroupedBranch,
    'identity': IdentityBranch,
}
"""The branches of a stitch layer by kind."""
