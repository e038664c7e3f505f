"""Predicts the latency of stitches that were not measured, as a sum over their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..anchors.boundary import Boundary
from ..net.part_tree import StitchPart, function_of, parts_of
from ..net.stitchable_net import StitchableNet
from ..utils.signature import signature_of
from .stopwatch import Call

PRIOR, NOISE = 0.3, 0.01
"""Relative standard deviations: of a part from its time alone, and of a measured stitch from the sum of its parts."""
_Array = np.ndarray[Any, Any]


class Additive:
    """Models the time of a stitch as the sum of the times of its parts, where equal parts take equal time.

    Parts are equal if modules of one class and shape lie between equal boundaries. Each kind of part is timed alone.
    Within a stitch it takes a different time (caches, overlapping calls), so the times are fitted to measured stitches.
    With counts N (S, K), times alone t (K,) and measured times m (S,), the times are c t (1 + x), where c is the median
    of m / (N t) and x minimizes

        sum_s (1 - c (N (t + t x))_s / m_s)^2 / NOISE^2 + |x|^2 / PRIOR^2.

    Args:
        net: the net of the stitches.
        stitches: ids of the stitches to predict.
    """

    def __init__(self, net: StitchableNet, stitches: Sequence[int]) -> None:
        self.stitches = list(stitches)
        self._parts: dict[Any, StitchPart] = {}
        counts: list[dict[int, int]] = []
        kinds: dict[StitchPart, int] = {}
        index: dict[Any, int] = {}
        for stitch in stitches:
            counts.append({})
            for _, part in parts_of(net, stitch):
                if part not in kinds:
                    kind = _kind(net, part)
                    self._parts.setdefault(kind, part)
                    kinds[part] = index.setdefault(kind, len(index))
                counts[-1][kinds[part]] = counts[-1].get(kinds[part], 0) + 1
        self._counts: _Array = np.array([[row.get(k, 0) for k in range(len(index))] for row in counts], dtype=float)
        self._rows = {stitch: row for row, stitch in enumerate(self.stitches)}

    def calls(self, net: StitchableNet, images: Tensor) -> list[Call]:
        """Returns a call for each kind of part, with features of the right shape."""
        return [_call(net, part, images) for part in self._parts.values()]

    def probes(self, times: Sequence[float], measured: Sequence[int], count: int) -> list[int]:
        """Chooses the stitches to measure: greedily, each the one whose prediction is least certain given the others.

        Args:
            times: (K,), milliseconds of the parts alone, in the order of `calls`.
            measured: ids of stitches that are measured anyway.
            count: number of stitches to choose.
        """
        shares = self._counts * np.array(times)  # (S, K)
        shares /= shares.sum(1, keepdims=True)
        chosen = [self._rows[stitch] for stitch in measured]
        probes: list[int] = []
        for _ in range(min(count, len(self.stitches) - len(chosen))):
            known = shares[chosen]
            spread = np.linalg.inv(known.T @ known + (NOISE / PRIOR) ** 2 * np.eye(shares.shape[1]))
            doubt = np.einsum('sk,kl,sl->s', shares, spread, shares)
            doubt[chosen] = -1
            chosen.append(int(doubt.argmax()))
            probes.append(self.stitches[chosen[-1]])
        return probes

    def predict(self, times: Sequence[float], measured: Mapping[int, float]) -> dict[int, float]:
        """Predicts the milliseconds of every stitch.

        Args:
            times: (K,), milliseconds of the parts alone, in the order of `calls`.
            measured: milliseconds of the measured stitches, by id.
        """
        rows = [self._rows[stitch] for stitch in measured]
        wanted = np.array(list(measured.values()))
        sums = self._counts * np.array(times)
        scale = float(np.median(wanted / sums[rows].sum(1)))
        shares = scale * sums[rows] / wanted[:, None]
        weights = shares.T @ shares + (NOISE / PRIOR) ** 2 * np.eye(shares.shape[1])
        change = np.linalg.solve(weights, shares.T @ (1 - shares.sum(1)))
        total = scale * sums @ (1 + change)
        return {stitch: float(total[row]) for row, stitch in enumerate(self.stitches)}

    def error(self, times: Sequence[float], measured: Mapping[int, float]) -> dict[str, float]:
        """Returns mean and largest relative error of predicting each measured stitch from the other ones."""
        errors = []
        for stitch, ms in measured.items():
            others = {other: value for other, value in measured.items() if other != stitch}
            errors.append(abs(self.predict(times, others)[stitch] / ms - 1))
        return {'mean': float(np.mean(errors)), 'largest': max(errors)}


def _kind(net: StitchableNet, part: StitchPart) -> Any:
    """Returns a value that is equal for parts that take equal time."""
    if part.kind == 'layer':
        layer = net.layer(part.number)
        return part.kind, layer.front, layer.end
    if part.kind != 'module':
        return part.kind, part.anchor
    anchor = net.anchor(part.anchor)
    return signature_of(anchor.line()[part.number]), anchor.boundaries[part.number : part.number + 2]


def _call(net: StitchableNet, part: StitchPart, images: Tensor) -> Call:
    if part.kind == 'stem':
        features = images
    elif part.kind == 'layer':
        features = _features(net.layer(part.number).front, images)
    else:
        boundaries = net.anchor(part.anchor).boundaries
        features = _features(boundaries[part.number if part.kind == 'module' else -1], images)
    run = function_of(net, part)
    return lambda: run(features)


def _features(boundary: Boundary, images: Tensor) -> Tensor:
    """Returns features of the boundary's shape, filled with the values of the images."""
    count = len(images) * int(np.prod(boundary.shape))
    values = images.flatten()
    return values.repeat(-(-count // len(values)))[:count].view(len(images), *boundary.shape)
