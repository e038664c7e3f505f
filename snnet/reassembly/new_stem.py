"""The new stem of a reassembled network, as in the paper."""

from __future__ import annotations

from torch import Tensor, nn

from ..anchors.boundary import Boundary
from ..utils.safe_batch_norm import SafeBatchNorm2d
from .join_layer import boundary_behind_join
from .relayout import relayout, relayout_flops


class NewStem(nn.Module):
    """The paper's stem: 7x7 convolution of stride 2 without bias, BatchNorm, ReLU, 3x3 max pooling of stride 2.

    Args:
        wanted: what the first leg takes; its channels are the stem's.
        input_size: channels, height and width of an image in pixels.
        resample: bring the features onto the wanted grid; otherwise the leg runs on a quarter of the image.

    Attributes:
        end: what the stem gives.
    """

    def __init__(self, wanted: Boundary, input_size: tuple[int, int, int], resample: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_size[0], wanted.channels, 7, stride=2, padding=3, bias=False)
        self.norm = SafeBatchNorm2d(wanted.channels)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.inside = _behind_pooling(input_size, wanted.channels)
        self.end = boundary_behind_join(self.inside, wanted, resample)

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, C, H, W) to the features that the first leg takes."""
        return relayout(self.pool(self.act(self.norm(self.conv(x)))), self.inside, self.end)


def new_stem_costs(input_size: tuple[int, int, int], end: Boundary) -> tuple[int, int]:
    """FLOPs per image and parameters of the new stem that resamples to the grid of `end`."""
    channels, height, width = input_size
    weights = 7 * 7 * channels * end.channels
    cells = -(-height // 2) * -(-width // 2)
    flops = cells * (weights + 2 * end.channels)  # the convolution and the norm
    return flops + relayout_flops(_behind_pooling(input_size, end.channels), end.grid), weights + 2 * end.channels


def _behind_pooling(input_size: tuple[int, int, int], channels: int) -> Boundary:
    """Two strides of 2, each rounded up: a quarter of the image."""
    return Boundary(channels, (-(-input_size[1] // 4), -(-input_size[2] // 4)), 'NCHW')
