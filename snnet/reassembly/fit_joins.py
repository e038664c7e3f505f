"""Initializes the joins of a reassembled network by least squares, one after the other."""

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
from ..anchors.normalization import Normalization, Renormalize
from ..calibration.image_chunks import image_chunks
from ..calibration.initialize import CHUNK
from ..calibration.least_squares import LayerFit, Sums
from ..errors import SnnetError
from ..stitching.layout import feature_vectors
from ..utils.eval_mode import eval_mode
from .join_layer import SLOPE, JoinLayer
from .reassembled import Reassembled
from .relayout import relayout

_log = logging.getLogger(__name__)
_WEAK = 1e-3
"""Directions of the weight weaker than this share of its strongest one are not used to take up a bias."""


@torch.no_grad()
def initialize_joins(
    net: Reassembled,
    zoo: Mapping[str, Anchor],
    batches: Iterable[Tensor | Sequence[Any]],
    samples: int = 100,
    progress: Callable[[int], object] | None = None,
    ridge: float = 0.0,
) -> list[LayerFit]:
    """Sets every join to the least-squares map from what reaches it to what the next leg receives in its own network.

    Joins are fitted in order, each behind the ones already fitted, in eval mode. Targets are the features of the next
    leg's whole network at the start of the leg, brought onto the grid of the join. In a published join, BatchNorm gets
    the mean and variance of what arrives, and the weight is fitted to the targets before the LeakyReLU. There is no
    bias, so the shift of the norm takes its place as far as it can. Sums are in float64; memory does not grow with the
    samples.

    Args:
        net: the network whose joins are set.
        zoo: the networks of its legs, whole.
        batches: clean images (n, C, H, W), or pairs that begin with them; read once per join, so a list or a loader.
        samples: how many images to use; if there are fewer, all are used, with a warning.
        progress: called with the number of images after each chunk, `samples` in all for each join.
        ridge: shrinks the maps, as in `snnet.initialize`.

    Returns:
        One report per join; residuals are those before the LeakyReLU and include what the shift could not take up.

    Raises:
        SnnetError: no images, images that can be read only once, a network that the zoo lacks, or features that are
            not finite.
    """
    if samples < 1:
        raise SnnetError(f'at least one image is needed to initialize, not samples={samples}')
    if not 0 <= ridge < math.inf:
        raise SnnetError(f'ridge must be zero or a positive finite number, not {ridge}')
    if isinstance(batches, Iterator):
        raise SnnetError('images are read once per join: pass a list or a loader, not an iterator')
    missing = [leg.anchor for leg in net.plan[1:] if leg.anchor not in zoo]
    if missing:
        raise SnnetError(f"the zoo lacks '{missing[0]}', whose features a join is fitted to: it has {', '.join(zoo)}")
    fits = []
    for index in range(len(net.plan) - 1):
        sums, used = _accumulate(net, zoo[net.plan[index + 1].anchor], index, batches, samples, progress)
        if used == 0:
            raise SnnetError('no images to initialize the joins with')
        if used < samples and index == 0:
            _log.warning(
                'initializing with only %d images, because there are no more (%d were asked for)', used, samples
            )
        if not all(bool(tensor.isfinite().all()) for tensor in sums.tensors()):
            raise SnnetError(f'features at join {index} ({net.join(index)}) are not finite: check weights and images')
        fits.append(_assign(net.join(index), sums, index, ridge))
    return fits


def _accumulate(
    net: Reassembled, own: Anchor, index: int, batches: Iterable[Any], samples: int, progress: Any
) -> tuple[Sums, int]:
    """The sums of a join over up to `samples` images, and how many there were."""
    join, used = net.join(index), 0
    weight = next(join.parameters())
    sums = Sums(join.front.channels * join.stride**2, join.end.channels, weight.device)
    start = net.plan[index + 1].start
    assert start is not None  # behind a join
    convert = _conversion(net, own)
    with eval_mode(net), eval_mode(own):
        for images, _ in image_chunks(batches, samples, CHUNK, own.input_size[0], own.input_size[1:]):
            x = images.to(weight.device, weight.dtype)
            features = own.run(own.stem(convert(x)), 0, start)
            target = relayout(features, own.boundaries[start], join.end)
            front, end = _rows(join, net.run_to_join(x, index), target)
            sums.add(front, front.T @ front, [end])
            used += len(images)
            if progress is not None:
                progress(len(images))
    return sums, used


def _conversion(net: Reassembled, own: Anchor) -> Callable[[Tensor], Tensor]:
    """Maps images normalized for the reassembled network to those that a network of the zoo was trained with."""
    given, wanted = Normalization.of_model(net, net.input_size[0]), own.normalization
    if given is None or wanted is None or given == wanted:
        return nn.Identity()
    return Renormalize(given, wanted).to(next(net.parameters()))


def _rows(join: JoinLayer, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """What the map should take and give, one row per output cell, in float64.

    Returns:
        (rows, front channels x stride^2) and (rows, end channels).
    """
    x = relayout(x, join.front, join.inside).double()
    target = relayout(target, join.end, join.outside).double()
    if join.stride > 1:
        x = F.unfold(x, join.stride, stride=join.stride)  # (N, C x stride^2, cells)
    x, target = feature_vectors(x, join.inside.layout), feature_vectors(target, join.outside.layout)
    if join.kind == 'published':
        target = torch.where(target < 0, target / SLOPE, target)  # before the LeakyReLU
        if isinstance(join.norm, nn.LayerNorm):
            x = F.layer_norm(x, x.shape[-1:], eps=join.norm.eps)
    return x, target


def _assign(join: JoinLayer, sums: Sums, index: int, ridge: float) -> LayerFit:
    """Sets the parameters of a join to the solution."""
    weight, bias, fit = sums.solve(index, ridge)  # (E, D), (E,)
    linear: Any = join.map
    if join.kind == 'plain':
        linear.weight.copy_(weight.view_as(linear.weight))
        linear.bias.copy_(bias)
        return fit
    norm, cells = join.norm, join.stride**2
    scale, center = torch.ones_like(weight[0]), torch.zeros_like(weight[0])  # (D,)
    if isinstance(norm, nn.BatchNorm2d):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        count = sums.rows * cells
        total = sums.front.view(-1, cells).sum(1)  # (C,)
        squares = sums.front_front.diagonal().reshape(-1, cells).sum(1)  # (C,)
        mean = total / count
        variance = (squares - total * mean).clamp(min=0) / (count - 1).clamp(min=1)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        scale = (variance + float(norm.eps)).sqrt().repeat_interleave(cells)
        center = mean.repeat_interleave(cells)
    weight, shift, missed = _without_bias(sums, weight, scale, center, cells)
    nn.init.ones_(norm.weight)  # type: ignore[arg-type]  # of a BatchNorm or LayerNorm
    norm.bias.copy_(shift)  # type: ignore[operator]
    linear.weight.copy_(weight.view_as(linear.weight))
    return replace(fit, residual=missed)


def _without_bias(
    sums: Sums, weight: Tensor, scale: Tensor, center: Tensor, cells: int
) -> tuple[Tensor, Tensor, float]:
    """The weight W and the shift s of the norm that do well without a bias, and the residual that they leave.

    With z = (x - center) / scale, the join gives y = W (z + s). Given W, the best s is a least-squares solution of
    W s = mean(y - W z), which is exact if the end is no wider than the front. If it is wider, W is fitted once more,
    to that s: the shift becomes one more direction of the front, which takes up most of the bias.

    Args:
        sums: of x (rows, D) and y (rows, E), where D is the number of channels C times `cells`.
        weight: (E, D), with bias.
        scale: (D,).
        center: (D,).
        cells: cells of a patch (stride^2) that share one entry of the shift.

    Returns:
        W (E, D), s (C,), and the residual.
    """
    rows = sums.rows
    mean, target = (sums.front / rows - center) / scale, sums.end / rows  # (D,), (E,)
    second = sums.front_front / rows - torch.outer(sums.front / rows, center)
    second = (second - torch.outer(center, sums.front / rows - center)) / torch.outer(scale, scale)  # E[z z^T] (D, D)
    cross = (sums.front_end / rows - torch.outer(center, target)) / scale[:, None]  # E[z y^T] (D, E)
    power = sums.end_end / rows  # E[y^T y]
    spread = (power - target @ target).clamp(min=torch.finfo(rows.dtype).tiny)

    def shifted(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best shift (C,) for a weight, E[(z + s) (z + s)^T] (D, D) and E[(z + s) y^T] (D, E)."""
        by_channel = weight.view(len(weight), -1, cells).sum(2)  # (E, C)
        shift = torch.linalg.pinv(by_channel, rtol=_WEAK) @ (target - weight @ mean)
        wide = shift.repeat_interleave(cells)  # (D,)
        about = second + torch.outer(mean, wide) + torch.outer(wide, mean) + torch.outer(wide, wide)
        return shift, about, cross + torch.outer(wide, target)

    weight = weight * scale
    shift, about, with_target = shifted(weight)
    if len(weight) > len(shift):
        weight = (torch.linalg.pinv(about, hermitian=True) @ with_target).T
        shift, about, with_target = shifted(weight)
    error = power - 2 * (weight.T * with_target).sum() + ((weight @ about) * weight).sum()
    return weight, shift, float((error / spread).clamp(min=0))
