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
        logits: Tensor = self.model.forward_head(self.model.norm(x))
        return logits

    def published_head(self, x: Tensor) -> Tensor:
        """Without the final norm: the published stitches of DeiT leave it out (only whole anchors apply it)."""
        logits: Tensor = self.model.forward_head(x)
        return logits
