"""Seams of a reassembled network: what joins the end of one leg to the start of the next, and its stem and head."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anchors.boundary import Boundary
from ..errors import SnnetError
from ..stitching.layout import to_layout
from ..stitching.stitch_layer import StitchLayer
from ..utils.batch_norm import SafeBatchNorm2d

KINDS = ('published', 'plain')
"""What a seam is made of: norm, 1x1 map without bias, LeakyReLU as in the paper; or a plain 1x1 map with bias."""
SLOPE = 0.1
"""Of the published seams' LeakyReLU below zero."""

Made = TypeVar('Made', bound=nn.Module)


def relayout(x: Tensor, given: Boundary, wanted: Boundary) -> Tensor:
    """Features in another layout, on another grid, or without their prefix tokens; channels stay.

    Both sides of a grid that shrink are average pooled (adaptively), other grids are interpolated (bilinear). Prefix
    tokens are untouched where both boundaries have as many, and dropped where the wanted one has none.
    """
    prefix, x = x[:, : wanted.prefix], x[:, given.prefix :] if given.prefix else x
    if given.grid != wanted.grid:
        x = _resample(to_layout(x, given, 'NCHW'), given.grid, wanted.grid)
        given = replace(wanted, layout='NCHW')
    x = to_layout(x, given, wanted.layout)
    return torch.cat([prefix, x], dim=1) if wanted.prefix else x


def _resample(x: Tensor, given: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    if wanted[0] <= given[0] and wanted[1] <= given[1]:
        return F.adaptive_avg_pool2d(x, wanted)
    return F.interpolate(x, wanted, mode='bilinear')


def behind_seam(front: Boundary, end: Boundary, resample: bool) -> Boundary:
    """What a seam gives where the end's own network has the boundary `end`.

    Prefix tokens stay where both have the same number of them; otherwise the end runs without. Without resampling
    it runs on the grid that comes (as the published networks do).
    """
    prefix = front.prefix if front.prefix == end.prefix else 0
    return replace(end, grid=end.grid if resample else front.grid, prefix=prefix)


class Seam(nn.Module):
    """Joins what a leg gives to what the next one takes.

    The features are resampled where the grids differ, then mapped, then laid out as the next leg wants them. The
    published kind is BatchNorm -> 1x1 convolution without bias -> LeakyReLU(0.1) where either side is a map of
    channels (NCHW), LayerNorm -> linear without bias -> LeakyReLU between token sequences and windows (DeRy,
    supplement, Table 5). The plain kind is SN-Net's stitch layer.

    Args:
        front: what comes.
        end: what goes on, as `behind_seam` gives it.
        kind: 'published' or 'plain'.
    """

    def __init__(self, front: Boundary, end: Boundary, kind: str = 'published') -> None:
        super().__init__()
        if kind not in KINDS:
            raise SnnetError(f"a seam is one of {', '.join(KINDS)}, not '{kind}'")
        self.front, self.end, self.kind = front, end, kind
        maps = kind == 'published' and 'NCHW' in (front.layout, end.layout)
        layout = 'NCHW' if maps else front.layout
        self.inside = replace(end, channels=front.channels, layout=layout)
        """In which the map runs."""
        self.map: nn.Module
        if kind == 'plain':
            self.map = StitchLayer(self.inside, end)
        elif maps:
            self.norm: nn.Module = SafeBatchNorm2d(front.channels)
            self.map = nn.Conv2d(front.channels, end.channels, 1, bias=False)
        else:
            self.norm = nn.LayerNorm(front.channels)
            self.map = nn.Linear(front.channels, end.channels, bias=False)
        self.act = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """Features at the front's boundary to features at the end's boundary."""
        x = relayout(x, self.front, self.inside)
        if self.kind == 'plain':
            return self.map(x)
        return relayout(self.act(self.map(self.norm(x))), replace(self.inside, channels=self.end.channels), self.end)

    def extra_repr(self) -> str:
        """The two boundaries, in print."""
        return f'{self.front} > {self.end}'


class NewStem(nn.Module):
    """The paper's stem: 7x7 convolution of stride 2 without bias, BatchNorm, ReLU, 3x3 max pooling of stride 2.

    Args:
        wanted: what the first leg takes; its channels are the stem's.
        input_size: channels, height and width of an image.
        resample: bring the features onto the wanted grid; otherwise the leg runs on a quarter of the image.
    """

    def __init__(self, wanted: Boundary, input_size: tuple[int, int, int], resample: bool) -> None:
        super().__init__()
        channels, height, width = input_size
        self.conv = nn.Conv2d(channels, wanted.channels, 7, stride=2, padding=3, bias=False)
        self.norm = SafeBatchNorm2d(wanted.channels)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.inside = Boundary(wanted.channels, (-(-height // 4), -(-width // 4)), 'NCHW')
        self.end = behind_seam(self.inside, wanted, resample)

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, C, H, W) to the features that the first leg takes."""
        return relayout(self.pool(self.act(self.norm(self.conv(x)))), self.inside, self.end)


class NewHead(nn.Module):
    """The paper's head: global average pooling over the grid, then a linear classifier.

    Args:
        front: what the last leg gives; prefix tokens take no part.
        num_classes: width of the logits.
    """

    def __init__(self, front: Boundary, num_classes: int) -> None:
        super().__init__()
        self.front = front
        self.fc = nn.Linear(front.channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features at the last position to logits (N, classes)."""
        axes = {'NCHW': (2, 3), 'NHWC': (1, 2), 'NLC': (1,)}[self.front.layout]
        return self.fc(x[:, self.front.prefix :].mean(axes) if self.front.prefix else x.mean(axes))


def seam_costs(kind: str, front: Boundary, end: Boundary) -> tuple[int, int]:
    """FLOPs an image (as `cost` counts them) and parameters of the seam that resamples to `end` (see `tabulate`)."""
    end = behind_seam(front, end, resample=True)
    tokens = math.prod(end.grid) + end.prefix
    flops, params = tokens * front.channels * end.channels, (front.channels + 1) * end.channels
    if kind == 'published':
        maps = 'NCHW' in (front.layout, end.layout)
        flops += (2 if maps else 5) * tokens * front.channels  # the norm
        params = front.channels * (end.channels + 2)
    return flops + _resample_flops(front, end.grid), params


def new_stem_costs(input_size: tuple[int, int, int], end: Boundary) -> tuple[int, int]:
    """FLOPs an image and parameters of the new stem that resamples to `end`."""
    channels, height, width = input_size
    weights = 49 * channels * end.channels
    inside = Boundary(end.channels, (-(-height // 4), -(-width // 4)), 'NCHW')
    flops = -(-height // 2) * -(-width // 2) * (weights + 2 * end.channels)
    return flops + _resample_flops(inside, end.grid), weights + 2 * end.channels


def new_head_costs(num_classes: int, front: Boundary) -> tuple[int, int]:
    """FLOPs an image and parameters of the new head."""
    return front.channels * num_classes, (front.channels + 1) * num_classes


def _resample_flops(front: Boundary, grid: tuple[int, int]) -> int:
    if front.grid == grid:
        return 0
    smaller = grid[0] <= front.grid[0] and grid[1] <= front.grid[1]
    return front.channels * (math.prod(front.grid) if smaller else 4 * math.prod(grid))


def made(make: Callable[[], Made], like: Tensor, generator: torch.Generator) -> Made:
    """A new part on the device and in the type of a tensor, with torch's usual initialization drawn from `generator`.

    Nothing is drawn from torch's own generator.
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
