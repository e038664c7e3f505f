"""Embeddings of one width from every stitch of a net whose anchors have no classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..anchors.anchor import Anchor
from ..errors import SnnetError
from ..utils.modes import eval_mode
from .predict import Picture, batched, prepare_pictures

if TYPE_CHECKING:
    from .stitchable_net import StitchableNet


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


def embed(net: StitchableNet, images: Picture | Iterable[Picture], stitch: int | None, batch_size: int) -> Tensor:
    """Embeddings of images (see `StitchableNet.embed`)."""
    if net.num_classes > 0:
        raise SnnetError(
            f'{net.title} has {net.num_classes} classes: net.reset_classifier(0) makes it a net of embeddings'
        )
    if batch_size < 1:
        raise SnnetError(f'batch_size is at least 1, not {batch_size}')
    index = net.active if stitch is None else net.checked(stitch)
    end = net.stitches[index].legs[-1].anchor
    like, projection = next(net.parameters()), _projection(net, end)
    found = []
    with torch.inference_mode(), eval_mode(net):
        for batch in batched(prepare_pictures(net, images), batch_size):
            x = net(torch.stack(batch).to(like.device, like.dtype), stitch=index)  # (N, width of the end)
            found.append((x if projection is None else projection(x)).float().cpu())
    return torch.cat(found) if found else torch.empty(0, embedding_width(net.anchor(len(net.anchors) - 1)))


def _projection(net: StitchableNet, end: str) -> nn.Module | None:
    key = str(net.index_of(end))
    if key not in net.projections:
        return None
    projection = net.projections[key]
    if not any(bool(parameter.any()) for parameter in projection.parameters()):
        raise SnnetError(
            f'the embeddings of {end} have another width than those of the largest anchor, and nothing maps them yet: '
            f'snnet.fit_embeddings(net, batches) does'
        )
    return projection
