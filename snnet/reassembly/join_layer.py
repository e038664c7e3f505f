"""The join of a reassembled network: norm, map and activation from the end of one leg to the start of the next."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor, nn

from ..anchors.boundary import Boundary
from ..errors import CannotStitch, SnnetError
from ..stitching.stitch_layer import StitchLayer
from ..utils.safe_batch_norm import SafeBatchNorm2d
from .relayout import relayout, relayout_flops

KINDS = ('published', 'plain')
"""What a join is made of: norm, map without bias and LeakyReLU as in the paper; or a plain map with bias."""
MAX_STRIDE = 16
SLOPE = 0.1
"""Slope of the published joins' LeakyReLU below zero."""


def boundary_behind_join(front: Boundary, end: Boundary, resample: bool, stride: int = 1) -> Boundary:
    """What a join gives where the network of the next leg has the boundary `end`.

    Prefix tokens are kept if both sides have the same number of them; otherwise the next leg runs without. Without
    resampling it runs on the grid that arrives (as in the published networks), divided by the stride.

    Raises:
        CannotStitch: a stride larger than the grid.
    """
    if min(front.grid) < stride:
        raise CannotStitch(f'a join of stride {stride} needs a grid of at least {stride}x{stride}, not {front}')
    prefix = front.prefix if front.prefix == end.prefix and stride == 1 else 0
    grid = end.grid if resample else (front.grid[0] // stride, front.grid[1] // stride)
    return replace(end, grid=grid, prefix=prefix)


class JoinLayer(nn.Module):
    """Maps the features that a leg gives to those that the next leg takes.

    The features are resampled if the grids differ, then mapped, then laid out as the next leg needs them. The
    published kind is BatchNorm -> 1x1 convolution without bias -> LeakyReLU(0.1) if either side is a feature map
    (NCHW), and LayerNorm -> linear without bias -> LeakyReLU between token sequences and windows (DeRy, supplement,
    Table 5). The plain kind is SN-Net's stitch layer. With a stride s, the map is an s x s convolution of stride s.

    Args:
        front: what arrives.
        end: what leaves, as `boundary_behind_join` gives it.
        kind: 'published' or 'plain'.
        stride: of the map.

    Attributes:
        inside: what the map receives, after resampling.
        outside: what the map gives, before the layout of `end`.

    Raises:
        SnnetError: an unknown kind, or a stride below 1.
        CannotStitch: a stride where the published join is a linear layer.
    """

    def __init__(self, front: Boundary, end: Boundary, kind: str = 'published', stride: int = 1) -> None:
        super().__init__()
        if kind not in KINDS:
            raise SnnetError(f"joins must be one of {', '.join(KINDS)}, not '{kind}'")
        if not 1 <= stride <= MAX_STRIDE:
            raise SnnetError(f'the stride of a join must be 1 to {MAX_STRIDE}, not {stride}')
        self.front, self.end, self.kind, self.stride = front, end, kind, stride
        published, maps = kind == 'published', 'NCHW' in (front.layout, end.layout)
        if published and not maps and stride > 1:
            raise CannotStitch(f'the published join from {front} to {end} is a linear layer, which has no stride')
        convolves = (published and maps) or stride > 1
        layout = 'NCHW' if convolves else front.layout
        grid = (end.grid[0] * stride, end.grid[1] * stride) if stride > 1 else end.grid
        self.inside = replace(end, channels=front.channels, layout=layout, grid=grid)
        self.outside = replace(self.inside, channels=end.channels, grid=end.grid)
        self.map: nn.Module
        if convolves:
            self.map = nn.Conv2d(front.channels, end.channels, stride, stride=stride, bias=not published)
        elif published:
            self.map = nn.Linear(front.channels, end.channels, bias=False)
        else:
            self.map = StitchLayer(self.inside, end)
            self.outside = end
        if published:
            self.norm: nn.Module = SafeBatchNorm2d(front.channels) if maps else nn.LayerNorm(front.channels)
            self.act: nn.Module = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """Features at the front's boundary to features at the end's boundary."""
        x = relayout(x, self.front, self.inside)
        x = self.act(self.map(self.norm(x))) if self.kind == 'published' else self.map(x)
        return relayout(x, self.outside, self.end)

    def extra_repr(self) -> str:
        """Both boundaries, and the stride if it is not 1."""
        return f'{self.front} > {self.end}' + (f', stride {self.stride}' if self.stride > 1 else '')


def join_costs(kind: str, front: Boundary, end: Boundary) -> tuple[int, int]:
    """FLOPs per image and parameters of a join of stride 1 that resamples to the grid of `end`."""
    end = boundary_behind_join(front, end, resample=True)
    tokens = math.prod(end.grid) + end.prefix
    flops, params = tokens * front.channels * end.channels, (front.channels + 1) * end.channels
    if kind == 'published':
        maps = 'NCHW' in (front.layout, end.layout)
        flops += (2 if maps else 5) * tokens * front.channels  # the norm
        params = front.channels * (end.channels + 2)
    return flops + relayout_flops(front, end.grid), params
