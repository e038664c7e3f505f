"""Least-squares initialization of the stitch layers (SN-Net, Eq. 4 and 5), from sums instead of stored features."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..anchors.anchor import Anchor
from ..errors import SnnetError
from ..net.stitchable_net import StitchableNet
from ..stitching.layout import feature_vectors
from ..utils.eval_mode import eval_mode
from ..utils.whole_number import whole_number
from .image_chunks import image_chunks
from .least_squares import LayerFit, Sums

_log = logging.getLogger(__name__)
METHODS = ('joint', 'mean')

CHUNK = 4
"""Images whose features are held at a time, so that memory grows neither with the samples nor with the batch."""


@dataclass(frozen=True)
class FittedJoin:
    """A join to be fitted: a layer should map the front's features onto the end's.

    Attributes:
        front: name of the anchor that the front leg runs, and the position at which it stops.
        end: name of the anchor that the end leg runs, and the position at which it starts.
        layer: index of the stitch layer.
    """

    front: tuple[str, int]
    end: tuple[str, int]
    layer: int


def initialize(
    net: StitchableNet,
    batches: Iterable[Tensor | Sequence[Any]],
    samples: int = 100,
    method: str = 'joint',
    all_reduce: Callable[[Tensor], object] | None = None,
    progress: Callable[[int], object] | None = None,
    ridge: float = 0.0,
) -> list[LayerFit]:
    """Sets every stitch layer to the least-squares map from its front's features to its end's.

    Each anchor runs once over the images, in eval mode. Memory does not grow with their number.

    Args:
        net: the net; only its stitch layers change.
        batches: clean images (n, C, H, W), or pairs whose first item they are, normalized as for inference.
        samples: how many images to use; if there are fewer, those are used, with a warning.
        method: 'joint' fits all joins that share a layer together; 'mean' averages their solutions (as published).
        all_reduce: sums a tensor over ranks in place; `samples` then counts the images of this rank.
        progress: called with the number of images after each part of them.
        ridge: shrinks the maps: added to the diagonal of the correlation matrix of the front features. (The published
            code solves with `pinv` in float32, which has a similar effect: it drops the directions with the least
            variance.)

    Returns:
        One report per stitch layer.

    Raises:
        SnnetError: no images, an unknown method, a ridge out of range, or features that are not finite.
    """
    if method not in METHODS:
        raise SnnetError(f"method is {' or '.join(METHODS)}, not '{method}'")
    samples = whole_number('samples', samples)
    if samples < 1:
        raise SnnetError(f'at least one image is needed to initialize, but samples={samples} was given')
    if not 0 <= ridge < math.inf:
        raise SnnetError(f'ridge is zero or a positive finite number, not {ridge}')
    joins = _joins(net)
    groups = [[join for join in joins if join.layer == layer] for layer in range(len(net.stitch_layers))]
    if method == 'mean':
        groups = [[join] for group in groups for join in group]
    device = next(net.parameters()).device
    sums = [Sums(*_widths(net, group[0]), device) for group in groups]
    used = _accumulate(net, batches, samples, groups, sums, progress)
    tensors = [tensor for one in sums for tensor in one.tensors()]
    count = torch.tensor([used], dtype=torch.float64, device=device)
    if all_reduce is not None:
        for tensor in (*tensors, count):
            all_reduce(tensor)
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise SnnetError(_first_infinite(groups, sums))
    if int(count) == 0:
        raise SnnetError('no images to initialize the stitch layers with')
    if all_reduce is None and used < samples:
        _log.warning('initializing with all %d images there are (%d were asked for)', used, samples)
    return _assign(net, groups, sums, ridge)


def kaiming(net: StitchableNet, generator: torch.Generator) -> None:
    """Sets every stitch layer to torch's default (Kaiming) initialization, drawn from `generator` on the CPU."""
    for layer in map(net.layer, range(len(net.stitch_layers))):
        layer.reset_parameters(generator)


def _joins(net: StitchableNet) -> list[FittedJoin]:
    """Every join of the net once, in the order of ids."""
    found: dict[FittedJoin, None] = {}
    for stitch in net.stitches:
        for layer, front, end in zip(stitch.layers, stitch.legs, stitch.legs[1:], strict=False):
            assert front.stop is not None
            assert end.start is not None
            found[FittedJoin((front.anchor, front.stop), (end.anchor, end.start), layer)] = None
    return list(found)


def _widths(net: StitchableNet, join: FittedJoin) -> tuple[int, int]:
    layer = net.layer(join.layer)
    return layer.in_features, layer.out_features


@torch.no_grad()
def _accumulate(
    net: StitchableNet,
    batches: Iterable[Tensor | Sequence[Any]],
    samples: int,
    groups: Sequence[Sequence[FittedJoin]],
    sums: Sequence[Sums],
    progress: Callable[[int], object] | None,
) -> int:
    """Adds the features of up to `samples` images to the sums; returns how many images there were."""
    wanted: dict[str, set[int]] = {}
    for join in (join for group in groups for join in group):
        for name, position in (join.front, join.end):
            wanted.setdefault(name, set()).add(position)
    device = next(net.parameters()).device
    used = 0
    with eval_mode(net):
        for images, _ in image_chunks(batches, samples, CHUNK, net.input_size[0], net.input_size[1:]):
            features = {
                (name, position): x.double()  # once, although most of them take part in several fits
                for name, positions in wanted.items()
                for position, x in _features(net.anchor(name), images.to(device), positions)
            }
            _add_features(features, groups, sums)
            used += len(images)
            if progress is not None:
                progress(len(images))
    return used


def _add_features(
    features: dict[tuple[str, int], Tensor], groups: Sequence[Sequence[FittedJoin]], sums: Sequence[Sums]
) -> None:
    """Adds the float64 features (N, D) of one chunk, by anchor and position; each front's Gram matrix comes once."""
    grams: dict[tuple[str, int], Tensor] = {}
    for group, total in zip(groups, sums, strict=True):
        for position in dict.fromkeys(join.front for join in group):
            front = features[position]  # (N, D)
            if position not in grams:
                grams[position] = front.T @ front  # (D, D)
            total.add(front, grams[position], [features[j.end] for j in group if j.front == position])


def _features(anchor: Anchor, images: Tensor, positions: set[int]) -> Iterator[tuple[int, Tensor]]:
    """Features (n * tokens, channels) at each of the positions, from one pass."""
    x, at = images, None
    for position in sorted(positions):
        x = anchor.run(x, at, position)
        at = position
        yield position, feature_vectors(x, anchor.boundaries[position].layout)


def _assign(
    net: StitchableNet, groups: Sequence[Sequence[FittedJoin]], sums: Sequence[Sums], ridge: float
) -> list[LayerFit]:
    """Writes the solutions (the mean of several for one layer) into the stitch layers."""
    solutions: dict[int, list[tuple[Tensor, Tensor, LayerFit]]] = {}
    for group, total in zip(groups, sums, strict=True):
        index = group[0].layer
        solutions.setdefault(index, []).append(total.solve(index, ridge))
    fits = []
    for index, found in sorted(solutions.items()):
        layer = net.layer(index)
        weights, biases, reports = zip(*found, strict=True)
        with torch.no_grad():
            layer.weight.copy_(torch.stack(weights).mean(0))
            layer.bias.copy_(torch.stack(biases).mean(0))
        fits.append(_summary(index, reports))
    return fits


def _summary(layer: int, reports: Sequence[LayerFit]) -> LayerFit:
    """One report for a layer whose solutions were averaged: mean residual, worst rank and condition."""
    rows = sum(report.rows for report in reports)
    return LayerFit(
        layer,
        sum(report.residual * report.rows for report in reports) / rows,
        min(report.rank for report in reports),
        reports[0].channels,
        max(report.condition for report in reports),
        rows,
    )


def _first_infinite(groups: Sequence[Sequence[FittedJoin]], sums: Sequence[Sums]) -> str:
    """Names the first features that are not finite."""
    for group, total in zip(groups, sums, strict=True):
        for values, (name, position) in ((total.front, group[0].front), (total.end, group[0].end)):
            if not bool(values.isfinite().all()):
                return f'{name} gives features that are not finite at position {position}: check weights and images'
    return 'the features are too large for float64 sums: check weights and images'


initialise = initialize
"""The same function in British spelling."""
