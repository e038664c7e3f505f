"""The modules that can have branches: convolutions, and stitch layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from ..stitching.layout import to_layout
from ..stitching.stitch_layer import StitchLayer
from ..utils.safe_batch_norm import SafeBatchNorm2d
from .block import Block, is_block
from .branch import Branch
from .convolution_branches import CONVOLUTION
from .kernel_window import KernelWindow
from .stitch_branches import STITCH


class RepConv2d(Block, nn.Conv2d):
    """A convolution with branches."""

    plain = nn.Conv2d
    kinds = CONVOLUTION

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H', W')."""
        return self.run_branches(x)


class RepConv2dSame(Block, Conv2dSame):  # type: ignore[misc]  # timm is not typed
    """A convolution whose padding depends on the size of its input, as TensorFlow's does, with branches."""

    plain = Conv2dSame
    kinds = CONVOLUTION

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H', W')."""
        return self.run_branches(x)


class RepStitchLayer(Block, StitchLayer):
    """A stitch layer with branches, which see maps in every layout."""

    plain = StitchLayer
    kinds = STITCH

    def forward(self, x: Tensor) -> Tensor:
        """Features at the front's boundary to features at the end's boundary."""
        y = self.run_branches(as_map(self, x))
        if self.front.layout == 'NLC':
            y = y.squeeze(2).transpose(1, 2)
        elif self.front.layout == 'NHWC':
            y = y.permute(0, 2, 3, 1)
        return to_layout(y, self.front, self.end.layout)


BLOCK_OF: dict[type[nn.Module], type[Block]] = {
    block.plain: block for block in (RepConv2d, RepConv2dSame, RepStitchLayer)
}
"""The class that a plain module of each class gets when it grows."""


def window_of(module: nn.Module) -> KernelWindow:
    """The geometry of a convolution, plain or with branches; a linear layer has one tap."""
    if isinstance(module, nn.Linear):
        return KernelWindow((module.in_features, module.out_features))
    assert isinstance(module, nn.Conv2d)
    return KernelWindow.of(module, follows_input='Same' in type(module).__name__)  # as timm calls them


def kinds_of(module: nn.Module) -> Mapping[str, type[Branch]]:
    """The branches that a module may have, by kind."""
    return (type(module) if is_block(module) else BLOCK_OF[type(module)]).kinds


def as_block(module: nn.Module) -> Block:
    """The module as a block. A plain one becomes a block without branches, in place; its output in eval mode stays."""
    if is_block(module):
        return module
    kind = BLOCK_OF[type(module)]
    window, weight = window_of(module), module.get_parameter('weight')
    module.__class__ = kind  # a block has the layout of its plain class
    assert is_block(module)
    norm = SafeBatchNorm2d(len(weight), device=weight.device, dtype=weight.dtype)
    module.norm, module.branches, module.window = norm, nn.ModuleDict(), window
    with torch.no_grad():
        norm.weight.fill_((1 + norm.eps) ** 0.5)  # with variance 1, this cancels eps exactly
    norm.requires_grad_(weight.requires_grad).train(module.training)
    return module


def as_map(module: nn.Module, x: Tensor) -> Tensor:
    """The input of a convolution or a stitch layer as a map (N, channels, rows, columns); tokens are one row."""
    layout = module.front.layout if isinstance(module, StitchLayer) else 'NCHW'
    if layout == 'NLC':
        return x.transpose(1, 2).unsqueeze(2)
    return x.permute(0, 3, 1, 2) if layout == 'NHWC' else x
