"""RegNet: X, Y, Z and V."""

from __future__ import annotations

from torch import Tensor

from ..line import Anchor, Stage


class RegNetAnchor(Anchor):
    """timm's `RegNet`: the first block of a stage does the downsampling itself."""

    def stem(self, x: Tensor) -> Tensor:
        """First convolution."""
        return self.model.stem(x)

    def stages(self) -> list[Stage]:
        """The four stages."""
        model = self.model
        return [Stage(list(stage.children())) for stage in (model.s1, model.s2, model.s3, model.s4)]

    def head(self, x: Tensor) -> Tensor:
        """Last convolution (none in X and Y), pooling and classifier."""
        return self.model.forward_head(self.model.final_conv(x))
