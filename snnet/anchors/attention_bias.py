"""The caches of attention biases that timm's LeViT and its relatives fill in eval mode."""

from __future__ import annotations

from typing import Any

from torch import nn


def clear_attention_bias_caches(model: nn.Module) -> None:
    """Drops the attention biases that timm gathers once in eval mode and would keep when weights change."""
    module: Any
    for module in model.modules():
        if hasattr(module, 'attention_bias_cache'):
            module.attention_bias_cache = {}
