"""Converts features between layouts, and into plain vectors."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from ..anchors.boundary import Boundary

_AXES = {'NCHW': 'n c h w', 'NHWC': 'n h w c', 'NLC': 'n (h w) c'}


def to_layout(x: Tensor, given: Boundary, layout: str) -> Tensor:
    """Rearranges features into another layout.

    Args:
        x: features at the boundary `given`, without prefix tokens where the layouts differ; any number of channels.
        given: grid and layout of `x`.
        layout: 'NCHW', 'NHWC' or 'NLC'.

    Returns:
        `x` itself where it has that layout already.
    """
    if given.layout == layout:
        return x
    sizes = dict(zip('hw', given.grid, strict=True)) if given.layout == 'NLC' else {}
    return rearrange(x, f'{_AXES[given.layout]} -> {_AXES[layout]}', **sizes)


def feature_vectors(x: Tensor, layout: str) -> Tensor:
    """The feature vectors of all tokens or cells of a batch, one per row: (n * tokens, channels)."""
    if layout == 'NCHW':
        x = x.movedim(1, -1)  # (n, h, w, channels)
    return x.reshape(-1, x.shape[-1])
