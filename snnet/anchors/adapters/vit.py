"""Plain vision transformers: ViT, DeiT, DeiT-3, distilled DeiT, register tokens, CLIP and SigLIP towers."""

from __future__ import annotations

from torch import Tensor

from ..anchor import Anchor
from ..network_line import Stage


class ViTAnchor(Anchor):
    """timm's `VisionTransformer`: one stage of tokens behind the position embedding."""

    layout = 'NLC'

    def stem(self, x: Tensor) -> Tensor:
        """Patches, prefix tokens and position embedding."""
        model = self.model
        tokens: Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        return tokens

    def stages(self) -> list[Stage]:
        """All blocks."""
        return [Stage(list(self.model.blocks))]

    def head(self, x: Tensor) -> Tensor:
        """Final norm, pooling and classifier."""
        return self.classify(self.tail(x))

    def published_head(self, x: Tensor) -> Tensor:
        """Without the final norm: the published stitches of DeiT leave it out (only whole anchors apply it)."""
        return self.classify(x)

    def tail(self, x: Tensor) -> Tensor:
        """Final norm."""
        tokens: Tensor = self.model.norm(x)
        return tokens

    def published_tail(self, x: Tensor) -> Tensor:
        """Nothing."""
        return x

    def classify(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooling and classifier."""
        logits: Tensor = self.model.forward_head(x, pre_logits=pre_logits)
        return logits
