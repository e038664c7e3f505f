"""Linear CKA from Gram matrices: unbiased, biased, or as published.

Of two feature matrices X and Y over the same n images, K = X X^T and L = Y Y^T are Gram matrices (n x n), and

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))                                 (Kornblith et al. 2019)

'biased' takes HSIC_0 = tr(K H L H) / (n - 1)^2, where H centers, and 'unbiased' takes HSIC_1 of Song et al. 2012:
where K' and L' are the Grams with zero diagonals,

    HSIC_1 = [tr(K' L') + 1'K'1 1'L'1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'K'L'1] / (n (n - 3))

Over batches, each of the three HSIC is summed and divided once at the end (Nguyen et al. 2021). 'published' is the DeRy
paper's way, the mean over batches of a biased CKA, which is far above 0 on independent features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from ..errors import SnnetError

ESTIMATORS = {'unbiased': 4, 'biased': 2, 'published': 2}
"""Names of the estimators, each with the fewest images that a batch of its may have."""

_COLUMNS = 4096
"""Features multiplied at a time: they stay in the cache, and float32 products are summed in float64."""
_STILL = 1e-12
"""Features whose variance is below this share of their square are rounding errors of a constant."""


class HsicSums:
    """Sums over batches from which CKA follows; they add over batches and ranks.

    Args:
        labels: what messages call the features at each boundary.
        estimator: one of `ESTIMATORS`.
        device: where the sums live.
    """

    def __init__(self, labels: Sequence[str], estimator: str = 'unbiased', device: torch.device | str = 'cpu') -> None:
        if estimator not in ESTIMATORS:
            raise SnnetError(f"the estimator is one of {', '.join(ESTIMATORS)}, not '{estimator}'")
        self.labels, self.estimator = tuple(labels), estimator
        self.batches = torch.zeros(1, dtype=torch.float64, device=device)
        self.total = torch.zeros(len(self.labels), len(self.labels), dtype=torch.float64, device=device)

    def add(self, grams: Tensor) -> None:
        """Adds a batch: the Gram matrices (boundaries, n, n) of the features at every boundary."""
        grams = grams.double()
        if self.estimator == 'unbiased':
            grams = _without_diagonal(grams)
        flat = grams.flatten(1)
        self._add(flat @ flat.T, grams.sum(-1))

    def add_features(self, features: Sequence[Tensor], tile: int = 64) -> None:
        """Adds a batch of any size: the features (n, ...) at every boundary.

        Works through tiles of the Grams, so that no whole Gram of all boundaries is held.
        """
        flats = [as_matrix(x) for x in features]
        means = [flat.mean(0) for flat in flats]
        n, device = len(flats[0]), self.total.device
        traces = [(flat - mean).double().square().sum() for flat, mean in zip(flats, means, strict=True)]
        live = torch.stack([_alive(*pair, n).to(device) for pair in zip(traces, means, strict=True)])
        products, rows = torch.zeros_like(self.total), self.total.new_zeros(len(flats), n)
        for first, second in combinations_with_replacement(range(0, n, tile), 2):
            here, there = slice(first, first + tile), slice(second, second + tile)
            parts = [_products(x[here], x[there], mean).to(device) for x, mean in zip(flats, means, strict=True)]
            grams = torch.stack(parts) * live[:, None, None]
            if self.estimator == 'unbiased' and first == second:
                grams = _without_diagonal(grams)
            flat_grams = grams.flatten(1)
            products += (flat_grams @ flat_grams.T) * (1 if first == second else 2)
            rows[:, here] += grams.sum(2)
            if first != second:
                rows[:, there] += grams.sum(1)
        self._add(products, rows)

    def _add(self, products: Tensor, rows: Tensor) -> None:
        """Adds a batch by tr(K L) of every two boundaries, and the sums over the rows of every Gram (boundaries, n).

        The Grams have no diagonals where the estimator is unbiased.
        """
        n, whole = rows.shape[1], rows.sum(1)
        least = ESTIMATORS[self.estimator]
        if n < least:
            raise SnnetError(f'the {self.estimator} estimate needs batches of at least {least} images, not {n}')
        mixed, ones = rows @ rows.T, torch.outer(whole, whole)
        if self.estimator == 'unbiased':
            hsic = (products + ones / ((n - 1) * (n - 2)) - mixed * (2 / (n - 2))) / (n * (n - 3))
        else:
            hsic = (products - mixed * (2 / n) + ones / n**2) / (n - 1) ** 2
        finite = hsic.diagonal().isfinite()
        if not bool(finite.all()):
            label = self.labels[int((~finite).int().argmax())]
            raise SnnetError(f'{label} are not finite, or too large to square: check weights and images')
        self.total += _normalized(hsic) if self.estimator == 'published' else hsic
        self.batches += 1

    def cka(self) -> Tensor:
        """CKA of every two boundaries (boundaries, boundaries), float64."""
        if self.estimator == 'published':
            return self.total / self.batches
        return _normalized(self.total)


def linear_cka(x: Tensor | np.ndarray, y: Tensor | np.ndarray, estimator: str = 'unbiased') -> float:
    """Linear CKA of two feature matrices over the same images.

    Args:
        x, y: features (n, ...) each; widths may differ. Float64 features are multiplied in float64.
        estimator: 'unbiased' or 'biased' ('published' is the same on one batch).

    Raises:
        SnnetError: unequal numbers of images, fewer than the estimator needs, or values that are not finite.
    """
    pair = [torch.as_tensor(values) for values in (x, y)]
    if len(pair[0]) != len(pair[1]):
        raise SnnetError(f'CKA compares features of the same images, but there are {len(pair[0])} and {len(pair[1])}')
    grams = torch.stack([gram(values) for values in pair])
    sums = HsicSums(('the features x', 'the features y'), estimator, grams.device)
    sums.add(grams)
    return float(sums.cka()[0, 1])


def gram(features: Tensor) -> Tensor:
    """The Gram matrix (n, n), float64, of features (n, ...) centerd over the images."""
    flat = as_matrix(features)
    mean = flat.mean(0)
    return _where_alive(_products(flat, flat, mean), mean)


def as_matrix(features: Tensor) -> Tensor:
    """Features (n, ...) as a matrix (n, width) of float32 or float64."""
    flat = features.reshape(len(features), -1)
    return flat if flat.dtype == torch.float64 else flat.float()


def _products(left: Tensor, right: Tensor, mean: Tensor) -> Tensor:
    """(left - mean) @ (right - mean)^T, of float32 or float64 products summed in float64."""
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=left.device)
    for at in range(0, left.shape[1], _COLUMNS):
        part = slice(at, at + _COLUMNS)
        rows = left[:, part] - mean[part]
        total += (rows @ (rows if right is left else right[:, part] - mean[part]).T).double()
    return total


def _where_alive(gram: Tensor, mean: Tensor) -> Tensor:
    """The Gram matrix, or zeros where the features are constant but for rounding errors."""
    trace = gram.diagonal().sum()
    return gram * _alive(trace, mean, len(gram))


def _alive(trace: Tensor, mean: Tensor, n: int) -> Tensor:
    """1 where centerd features with this trace vary, 0 where they are constant; NaN passes as 1."""
    return (~(trace <= _STILL * n * mean.double().square().sum())).double()


def _without_diagonal(grams: Tensor) -> Tensor:
    return grams - torch.diag_embed(grams.diagonal(dim1=-2, dim2=-1))


def _normalized(hsic: Tensor) -> Tensor:
    """HSIC of every two over the root of each one's own; 0 where a boundary's own is none."""
    own = hsic.diagonal().clamp(min=0)
    scale = torch.where(own > 0, own, torch.ones_like(own)).rsqrt() * (own > 0)
    result = hsic * torch.outer(scale, scale)
    result.diagonal().copy_((own > 0).to(result))
    return result
