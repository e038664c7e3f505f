"""Least-squares initialization of the seams of a reassembled network, one after the other."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anchors.anchor import Anchor
from ..calibration.image_chunks import image_chunks
from ..calibration.initialize import CHUNK
from ..calibration.least_squares import LayerFit, Sums
from ..errors import SnnetError
from ..stitching.layout import feature_vectors
from ..stitching.stitch_layer import StitchLayer
from ..utils.modes import eval_mode
from .joins import SLOPE, Seam, relayout
from .network import Reassembled

_log = logging.getLogger(__name__)
_WEAK = 1e-3
"""Directions of the weight that are weaker than this share of its strongest one are not used to take up a bias."""


@torch.no_grad()
def initialize_seams(
    net: Reassembled,
    zoo: Mapping[str, Anchor],
    batches: Iterable[Tensor | Sequence[Any]],
    samples: int = 100,
    progress: Callable[[int], object] | None = None,
    ridge: float = 0.0,
) -> list[LayerFit]:
    """Sets every seam to the least-squares map from what reaches it to what its end's own network has there.

    Seams are fitted from the first on, each behind those that were fitted before it, in eval mode. Targets are the
    features of the end's own, whole network at the start of the leg, brought onto the grid at hand. Of a published
    seam, BatchNorm gets the mean and variance of what comes; the weight is fitted to the targets before the LeakyReLU;
    and as there is no bias, the shift of the norm takes its place as well as it can. Sums are in float64; memory does
    not grow with the samples.

    Args:
        net: its seams change.
        zoo: the networks of its legs, whole.
        batches: clean images (n, C, H, W), or pairs whose first item they are; read once for each seam, so a list or
            a loader.
        samples: how many images to use; fewer are used, with a warning, where there are fewer.
        progress: is told the number of images after each part of them, `samples` in all for each seam.
        ridge: shrinks the maps, as in `snnet.initialize`.

    Returns:
        One report a seam (before the LeakyReLU, with what the shift could not take up).

    Raises:
        SnnetError: no images, images that can be read only once, a network that is not in the zoo, or features that
            are not finite.
    """
    if samples < 1:
        raise SnnetError(f'at least one image is needed to initialize, samples={samples} was asked for')
    if not 0 <= ridge < math.inf:
        raise SnnetError(f'ridge is zero or a positive finite number, not {ridge}')
    if isinstance(batches, Iterator):
        raise SnnetError('images are read once for each seam: pass a list or a loader, no iterator')
    missing = [leg.anchor for leg in net.plan[1:] if leg.anchor not in zoo]
    if missing:
        raise SnnetError(f"the zoo lacks '{missing[0]}', whose features a seam is to give: it has {', '.join(zoo)}")
    fits = []
    for index in range(len(net.seams)):
        sums, used = _accumulate(net, zoo[net.plan[index + 1].anchor], index, batches, samples, progress)
        if used == 0:
            raise SnnetError('no images to initialize the seams with')
        if used < samples and index == 0:
            _log.warning('initializing with %d images, for there are no more (%d were asked for)', used, samples)
        if not all(bool(tensor.isfinite().all()) for tensor in sums.tensors()):
            raise SnnetError(f'features at seam {index} ({net.seams[index]}) are not finite: check weights and images')
        fits.append(_assign(net.seam(index), sums, index, ridge))
    return fits


def _accumulate(
    net: Reassembled, own: Anchor, index: int, batches: Iterable[Any], samples: int, progress: Any
) -> tuple[Sums, int]:
    """Adds up to `samples` images to the sums of a seam; returns how many there were."""
    seam, used = net.seam(index), 0
    weight = next(seam.parameters())
    sums = Sums(seam.front.channels, seam.end.channels, weight.device)
    start = net.plan[index + 1].start
    assert start is not None  # behind a seam
    with eval_mode(net), eval_mode(own):
        for images, _ in image_chunks(batches, samples, CHUNK):
            x = images.to(weight.device, weight.dtype)
            target = relayout(own.run(x, None, start), own.boundaries[start], seam.end)
            front, end = _rows(seam, net.run_to_seam(x, index), target)
            sums.add(front, front.T @ front, [end])
            used += len(images)
            if progress is not None:
                progress(len(images))
    return sums, used


def _rows(seam: Seam, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """What the map shall take and give, feature vector by feature vector, in float64."""
    x = relayout(x, seam.front, seam.inside).double()
    target = relayout(target, seam.end, replace(seam.inside, channels=seam.end.channels)).double()
    x, target = feature_vectors(x, seam.inside.layout), feature_vectors(target, seam.inside.layout)
    if seam.kind == 'published':
        target = torch.where(target < 0, target / SLOPE, target)  # before the LeakyReLU
        if isinstance(seam.norm, nn.LayerNorm):
            x = F.layer_norm(x, x.shape[-1:], eps=seam.norm.eps)
    return x, target


def _assign(seam: Seam, sums: Sums, index: int, ridge: float) -> LayerFit:
    weight, bias, fit = sums.solve(index, ridge)
    if isinstance(seam.map, StitchLayer):
        seam.map.weight.copy_(weight)
        seam.map.bias.copy_(bias)
        return fit
    mean, rows = sums.front / sums.rows, sums.rows
    scale, center = torch.ones_like(mean), torch.zeros_like(mean)
    norm: Any = seam.norm
    if seam.inside.layout == 'NCHW':  # BatchNorm
        variance: Tensor = (sums.front_front.diagonal() - sums.front * mean).clamp(min=0) / (rows - 1).clamp(min=1)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        scale, center = (variance + float(norm.eps)).sqrt(), mean
    weight, shift, missed = _without_bias(sums, weight, scale, center)
    nn.init.ones_(norm.weight)
    norm.bias.copy_(shift)
    linear: Any = seam.map
    linear.weight.copy_(weight.view_as(linear.weight))
    return replace(fit, residual=missed)


def _without_bias(sums: Sums, weight: Tensor, scale: Tensor, center: Tensor) -> tuple[Tensor, Tensor, float]:
    """The weight and the shift of the norm that do well without a bias, and the residual that they leave.

    With z = (x - center) / scale the seam gives W (z + s). Given W, the best s is a least-squares solution of W s =
    what a bias would add, which is exact where the end is no wider than the front. Where it is wider, W is fitted once
    more, to that s: the shift becomes one more direction of the front, which takes up the bias but for a fraction.
    """
    rows = sums.rows
    mean, target = (sums.front / rows - center) / scale, sums.end / rows
    second = sums.front_front / rows - torch.outer(sums.front / rows, center)
    second = (second - torch.outer(center, sums.front / rows - center)) / torch.outer(scale, scale)
    cross = (sums.front_end / rows - torch.outer(center, target)) / scale[:, None]
    power = sums.end_end / rows
    spread = (power - target @ target).clamp(min=torch.finfo(rows.dtype).tiny)

    def shifted(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best shift for a weight, and the moments of z + s: with itself, with the targets."""
        shift = torch.linalg.pinv(weight, rtol=_WEAK) @ (target - weight @ mean)
        about = second + torch.outer(mean, shift) + torch.outer(shift, mean) + torch.outer(shift, shift)
        return shift, about, cross + torch.outer(shift, target)

    weight = weight * scale
    shift, about, with_target = shifted(weight)
    if len(weight) > weight.shape[1]:
        weight = (torch.linalg.pinv(about, hermitian=True) @ with_target).T
        shift, about, with_target = shifted(weight)
    error = power - 2 * (weight.T * with_target).sum() + ((weight @ about) * weight).sum()
    return weight, shift, float((error / spread).clamp(min=0))
