"""Features in another layout or on another grid."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..anchors.boundary import Boundary
from ..stitching.layout import to_layout


def relayout(x: Tensor, given: Boundary, wanted: Boundary) -> Tensor:
    """Brings features into another layout, onto another grid, or drops their prefix tokens; channels stay.

    A grid that shrinks on both sides is average pooled (adaptively), any other grid is interpolated (bilinear). Prefix
    tokens are kept if both boundaries have the same number of them, and dropped if the wanted boundary has none.

    Args:
        x: features at `given`.
        given: what flows in.
        wanted: what flows out.
    """
    if given == wanted:
        return x
    prefix, x = x[:, : wanted.prefix], x[:, given.prefix :] if given.prefix else x
    if given.grid != wanted.grid:
        x = _resample(to_layout(x, given, 'NCHW'), given.grid, wanted.grid)
        given = replace(wanted, layout='NCHW')
    x = to_layout(x, given, wanted.layout)
    return torch.cat([prefix, x], dim=1) if wanted.prefix else x


def relayout_flops(given: Boundary, grid: tuple[int, int]) -> int:
    """FLOPs per image of resampling to a grid, as `part_flops` counts them."""
    if given.grid == grid:
        return 0
    cells = math.prod(given.grid) if _shrinks(given.grid, grid) else 4 * math.prod(grid)
    return given.channels * cells


def _resample(x: Tensor, given: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    if _shrinks(given, wanted):
        return F.adaptive_avg_pool2d(x, wanted)
    return F.interpolate(x, wanted, mode='bilinear')


def _shrinks(given: tuple[int, int], wanted: tuple[int, int]) -> bool:
    return wanted[0] <= given[0] and wanted[1] <= given[1]
