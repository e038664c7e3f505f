"""Embeddings of one width from every stitch of a net whose anchors have no classes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..errors import SnnetError
from ..utils.eval_mode import eval_mode
from .joined_anchors import JoinedAnchors
from .predict import Picture, batched, prepare_pictures
from .projections import embedding_width


def embed(net: JoinedAnchors, images: Picture | Iterable[Picture], stitch: int | None, batch_size: int) -> Tensor:
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


def _projection(net: JoinedAnchors, end: str) -> nn.Module | None:
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
