"""LeViT, with token sequences or convolutions, distilled or not."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..anchor import Anchor
from ..attention_bias import clear_attention_bias_caches
from ..network_line import Stage
from .swin import entry_or_none


class LevitAnchor(Anchor):
    """timm's `Levit`: the attention downsampling opens a stage."""

    has_grid_bound_modules = True

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.layout = 'NCHW' if self.model.use_conv else 'NLC'

    def stem(self, x: Tensor) -> Tensor:
        """Convolutions, then tokens."""
        x = self.model.stem(x)
        return x if self.model.use_conv else x.flatten(2).transpose(1, 2)

    def stages(self) -> list[Stage]:
        """Stages of attention and MLP."""
        return [Stage(list(stage.blocks), entry_or_none(stage.downsample)) for stage in self.model.stages]

    def is_grid_bound(self, position: int, module: nn.Module) -> bool:
        """Attention biases belong to the cells of one grid."""
        return any(hasattr(part, 'attention_biases') for part in module.modules())

    def clear_caches(self) -> None:
        """Drops cached attention biases."""
        clear_attention_bias_caches(self.model)

    def head(self, x: Tensor) -> Tensor:
        """Pooling and classifier(s)."""
        return self.classify(x)

    def classify(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooling and classifier(s)."""
        logits: Tensor = self.model.forward_head(x, pre_logits=pre_logits)
        return logits
