"""ConvNeXt, v1 and v2."""

from __future__ import annotations

from torch import Tensor

from ..line import Anchor, Stage
from .swin import entry_or_none


class ConvNeXtAnchor(Anchor):
    """timm's `ConvNeXt`: norm and strided convolution open a stage."""

    def stem(self, x: Tensor) -> Tensor:
        """Patches."""
        return self.model.stem(x)

    def stages(self) -> list[Stage]:
        """Stages of depthwise blocks."""
        return [Stage(list(stage.blocks), entry_or_none(stage.downsample)) for stage in self.model.stages]

    def head(self, x: Tensor) -> Tensor:
        """Norms, pooling and classifier."""
        return self.model.forward_head(self.model.norm_pre(x))
