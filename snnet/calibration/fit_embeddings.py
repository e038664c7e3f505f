"""Projections of embeddings to one width, fitted by least squares."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SnnetError
from ..net.stitchable_net import StitchableNet
from ..utils.eval_mode import eval_mode
from .image_chunks import image_chunks
from .least_squares import LayerFit, Sums

_log = logging.getLogger(__name__)
_CHUNK = 16


@torch.no_grad()
def fit_embeddings(
    net: StitchableNet,
    batches: Iterable[Tensor | Sequence[Any]],
    samples: int = 1000,
    ridge: float = 1e-3,
    progress: Callable[[int], object] | None = None,
) -> list[LayerFit]:
    """Fits what maps the embeddings of smaller anchors to those of the largest, so that `net.embed` gives one width.

    Each map is the least-squares solution between the embeddings that the two anchors give for the same images.

    Args:
        net: of anchors without classes (num_classes=0).
        batches: clean images (n, C, H, W), or pairs whose first item they are, normalized as for inference.
        samples: how many images to use; if there are fewer, those are used, with a warning.
        ridge: shrinks the maps; added to the diagonal of the correlation matrix of the smaller anchor's embeddings.
        progress: called with the number of images after each part of them.

    Returns:
        One report per map; `layer` is the index of the anchor. Empty where all widths are equal.

    Raises:
        SnnetError: the net has classes, there are no images, or embeddings are not finite.
    """
    if net.num_classes > 0:
        raise SnnetError(f'{net.title} has {net.num_classes} classes, so it gives no embeddings')
    if not net.projections:
        return []
    layers = {int(index): layer for index, layer in net.projections.items() if isinstance(layer, nn.Linear)}
    device, last, used = next(net.parameters()).device, len(net.anchors) - 1, 0
    sums = {i: Sums(layer.in_features, layer.out_features, device) for i, layer in layers.items()}
    with eval_mode(net):
        for images, _ in image_chunks(batches, samples, _CHUNK, net.input_size[0], net.input_size[1:]):
            end = net(images.to(device), stitch=last).double()  # (n, E)
            for i, total in sums.items():
                front = net(images.to(device), stitch=i).double()  # (n, D)
                total.add(front, front.T @ front, [end])
            used += len(images)
            if progress is not None:
                progress(len(images))
    if not used:
        raise SnnetError('no images to fit the embeddings with')
    if not all(bool(tensor.isfinite().all()) for total in sums.values() for tensor in total.tensors()):
        raise SnnetError('embeddings are not finite: check weights and images')
    if used < samples:
        _log.warning('fitting embeddings with all %d images there are (%d were asked for)', used, samples)
    return [_assign(layers[i], total, i, ridge) for i, total in sums.items()]


def _assign(layer: nn.Linear, total: Sums, index: int, ridge: float) -> LayerFit:
    weight, bias, fit = total.solve(index, ridge)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return fit
