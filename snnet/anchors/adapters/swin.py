"""Swin transformers, v1 and v2."""

from __future__ import annotations

from torch import Tensor, nn

from ..anchor import Anchor
from ..network_line import Stage


class SwinAnchor(Anchor):
    """timm's `SwinTransformer` and `SwinTransformerV2`: the patch merging opens a stage."""

    layout = 'NHWC'
    has_grid_bound_modules = True

    def stem(self, x: Tensor) -> Tensor:
        """Patches."""
        features: Tensor = self.model.patch_embed(x)
        return features

    def stages(self) -> list[Stage]:
        """Layers; the first has no patch merging."""
        return [Stage(list(layer.blocks), entry_or_none(layer.downsample)) for layer in self.model.layers]

    def head(self, x: Tensor) -> Tensor:
        """Final norm, pooling and classifier."""
        return self.classify(self.tail(x))

    def tail(self, x: Tensor) -> Tensor:
        """Final norm."""
        features: Tensor = self.model.norm(x)
        return features

    def classify(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooling and classifier."""
        logits: Tensor = self.model.forward_head(x, pre_logits=pre_logits)
        return logits

    def is_grid_bound(self, position: int, module: nn.Module) -> bool:
        """Shifted windows: their mask is made for one grid, and would hide the wrong neighbors on others."""
        return getattr(module, 'attn_mask', None) is not None and not getattr(module, 'dynamic_mask', False)


def entry_or_none(downsample: nn.Module) -> nn.Module | None:
    """A stage's downsampling, or None where timm put an identity in its place."""
    return None if isinstance(downsample, nn.Identity) else downsample
