"""The stitch layer: a plain 1x1 map between two boundaries (SN-Net, section 3.2), layouts converted by einops."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import CannotStitch
from .line import Boundary

_AXES = {'NCHW': 'n c h w', 'NHWC': 'n h w c', 'NLC': 'n (h w) c'}


class StitchLayer(nn.Linear):
    """Maps every feature vector of the front to the end's width: 1x1 with bias, no norm, no activation.

    Prefix tokens are mapped like any other. Weight (end channels, front channels) and bias (end channels) are a linear
    layer's; on NCHW features they run as a 1x1 convolution.

    Args:
        front: boundary at which the front leg stops.
        end: boundary at which the end leg starts.
    """

    def __init__(self, front: Boundary, end: Boundary) -> None:
        if not front.joins(end):
            raise CannotStitch(f'no stitch layer joins {front} to {end}: grid and prefix tokens must agree')
        super().__init__(front.channels, end.channels)
        self.front, self.end = front, end

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Kaiming initialisation as in torch's layers: uniform within 1 / sqrt(front channels), drawn on the CPU."""
        bound = 1 / math.sqrt(self.in_features)
        with torch.no_grad():
            for parameter in (self.weight, self.bias):
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Features at the front's boundary to features at the end's boundary."""
        if self.front.layout == 'NCHW':
            x = F.conv2d(x, self.weight[:, :, None, None], self.bias)
        else:
            x = F.linear(x, self.weight, self.bias)
        if self.front.layout == self.end.layout:
            return x
        pattern = f'{_AXES[self.front.layout]} -> {_AXES[self.end.layout]}'
        sizes = dict(zip('hw', self.front.grid, strict=True)) if self.front.layout == 'NLC' else {}
        return rearrange(x, pattern, **sizes)

    @property
    def flops(self) -> int:
        """Multiply-adds an image."""
        return self.front.tokens * self.in_features * self.out_features

    def extra_repr(self) -> str:
        """The two boundaries, in print."""
        return f'{self.front} > {self.end}'
