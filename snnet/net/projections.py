"""Maps between the widths of embeddings, for a net whose anchors have no classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..anchors.anchor import Anchor
from ..errors import SnnetError


def embedding_width(anchor: Anchor) -> int:
    """Width of what an anchor without classes gives for an image.

    Raises:
        SnnetError: it gives more than one vector per image.
    """
    with torch.no_grad():
        try:
            shape = _output_shape(anchor, anchor.weightless_copy())
        except Exception:  # networks that need real numbers
            shape = _output_shape(anchor, anchor.duplicate().eval())
    if len(shape) != 2:
        raise SnnetError(
            f'{anchor.name} gives features of shape {tuple(shape[1:])} for an image, not one embedding: '
            f'give it a pooling (global_pool)'
        )
    return int(shape[1])


def _output_shape(anchor: Anchor, twin: Anchor) -> torch.Size:
    weight = next(twin.parameters())
    output: Tensor = twin(torch.zeros(1, *anchor.input_size, device=weight.device, dtype=weight.dtype))
    return output.shape


def make_projections(anchors: Sequence[Anchor]) -> nn.ModuleDict:
    """Maps from the embeddings of anchors to the width of the largest, by index; zero until they are fitted.

    There are none where anchors have classes, and none for anchors of that width.
    """
    if anchors[0].num_classes > 0:
        return nn.ModuleDict()
    widths = [embedding_width(anchor) for anchor in anchors]
    found = nn.ModuleDict()
    for index, width in enumerate(widths[:-1]):
        if width != widths[-1]:
            layer = found[str(index)] = nn.Linear(width, widths[-1])
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.requires_grad_(False)  # fitted, not trained
    return found
