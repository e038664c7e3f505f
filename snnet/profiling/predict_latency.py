"""Latencies of stitches that were not measured: a sum over the parts that they run, fitted to those that were."""

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
"""How far a part may be from its time by itself, and a measured stitch from its sum, as shares."""
_Array = np.ndarray[Any, Any]


class Additive:
    """The time of a stitch as the sum over its parts, of which equal ones take equal time.

    Parts are equal where modules of one class and shape lie between equal boundaries. Each is timed by itself; what it
    takes within a stitch differs from that (caches, calls that overlap), so the times are fitted to measured stitches:
    ridge regression towards the parts' own times, on relative errors.

    Args:
        net: whose stitches they are.
        stitches: ids that will be asked for.
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
        """A call of each kind of part, with features of the right shape."""
        return [_call(net, part, images) for part in self._parts.values()]

    def probes(self, times: Sequence[float], measured: Sequence[int], count: int) -> list[int]:
        """Stitches to measure next, each where the sum is least certain given those before it (and `measured`).

        Args:
            times: of the parts by themselves, in the order of `calls`.
            measured: stitches that are measured anyway.
            count: how many to choose.
        """
        shares = self._counts * np.array(times)
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
        """Milliseconds of every stitch.

        Args:
            times: of the parts by themselves, in the order of `calls`.
            measured: milliseconds of measured stitches.
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
        """Mean and largest error of predictions of measured stitches, each from the others alone, as shares."""
        errors = []
        for stitch, ms in measured.items():
            others = {other: value for other, value in measured.items() if other != stitch}
            errors.append(abs(self.predict(times, others)[stitch] / ms - 1))
        return {'mean': float(np.mean(errors)), 'largest': max(errors)}


def _kind(net: StitchableNet, part: StitchPart) -> Any:
    """Equal for parts that take equal time."""
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
    """Features of the shape that a boundary tells, of the images' values."""
    count = len(images) * int(np.prod(boundary.shape))
    values = images.flatten()
    return values.repeat(-(-count // len(values)))[:count].view(len(images), *boundary.shape)
