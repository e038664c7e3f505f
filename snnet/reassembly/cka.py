"""Linear CKA from Gram matrices: unbiased, biased, or as published.

For two feature matrices X (n, p) and Y (n, q) of the same n images, K = X X^T and L = Y Y^T are their Gram matrices
(n, n), and

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))                                 (Kornblith et al. 2019, Eq. 4)

'biased' uses, with the centering matrix H = I - 1 1^T / n,

    HSIC_0 = tr(K H L H) / (n - 1)^2                                               (Gretton et al. 2005)

'unbiased' uses, with K' and L' for the Grams whose diagonals are set to zero,

    HSIC_1 = [tr(K' L') + 1^T K' 1 1^T L' 1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1^T K' L' 1] / (n (n - 3))
                                                                                   (Song et al. 2012)

Over batches, each of the three HSIC is summed, and CKA is computed once at the end (Nguyen et al. 2021). 'published' is
what the DeRy paper does: the mean over batches of a biased CKA, which is far above 0 on independent features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from ..errors import SnnetError

ESTIMATORS = {'unbiased': 4, 'biased': 2, 'published': 2}
"""Names of the estimators, each with the smallest batch that it can use."""

_COLUMNS = 4096
"""Features multiplied at a time: a chunk stays in the cache, and float32 products are summed in float64."""
_STILL = 1e-12
"""Features whose variance is below this share of their square are rounding errors of a constant."""


class HsicSums:
    """HSIC of every two boundaries, summed over batches; sums of several ranks can be added.

    Args:
        labels: how messages name the features at each boundary.
        estimator: one of `ESTIMATORS`.
        device: of the sums.

    Attributes:
        total: (boundaries, boundaries), float64: the sum of HSIC, or of CKA for 'published'.
        batches: (1,), float64: how many were added.
    """

    def __init__(self, labels: Sequence[str], estimator: str = 'unbiased', device: torch.device | str = 'cpu') -> None:
        if estimator not in ESTIMATORS:
            raise SnnetError(f"the estimator must be one of {', '.join(ESTIMATORS)}, not '{estimator}'")
        self.labels, self.estimator = tuple(labels), estimator
        self.batches = torch.zeros(1, dtype=torch.float64, device=device)
        self.total = torch.zeros(len(self.labels), len(self.labels), dtype=torch.float64, device=device)

    def add(self, grams: Tensor) -> None:
        """Adds a batch by the Gram matrices (boundaries, n, n) of the features at all boundaries."""
        grams = grams.double()
        if self.estimator == 'unbiased':
            grams = _without_diagonal(grams)
        flat = grams.flatten(1)
        self._add(flat @ flat.T, grams.sum(-1))

    def add_features(self, features: Sequence[Tensor], tile: int = 64) -> None:
        """Adds a batch of any size by the features (n, ...) at all boundaries.

        Works through tiles of the Grams (tile, tile), so the Grams of all boundaries are never held at once.
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
        """Adds a batch, whose Grams have zero diagonals if the estimator is unbiased.

        Args:
            products: tr(K L) of every two boundaries (boundaries, boundaries).
            rows: K 1, the sums over the rows of every Gram (boundaries, n).
        """
        n, whole = rows.shape[1], rows.sum(1)
        least = ESTIMATORS[self.estimator]
        if n < least:
            raise SnnetError(f'the {self.estimator} estimate needs batches of at least {least} images, not {n}')
        mixed = rows @ rows.T  # 1^T K L 1 (boundaries, boundaries)
        ones = torch.outer(whole, whole)  # 1^T K 1 1^T L 1 (boundaries, boundaries)
        if self.estimator == 'unbiased':  # HSIC_1
            hsic = (products + ones / ((n - 1) * (n - 2)) - mixed * (2 / (n - 2))) / (n * (n - 3))
        else:  # HSIC_0
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
        x: features (n, ...). Float64 features are multiplied in float64.
        y: features (n, ...), perhaps of another width.
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
    """The Gram matrix (n, n), float64, of features (n, ...) centered over the images."""
    flat = as_matrix(features)
    mean = flat.mean(0)
    return _where_alive(_products(flat, flat, mean), mean)


def as_matrix(features: Tensor) -> Tensor:
    """Features (n, ...) as a matrix (n, width) of float32 or float64."""
    flat = features.reshape(len(features), -1)
    return flat if flat.dtype == torch.float64 else flat.float()


def _products(left: Tensor, right: Tensor, mean: Tensor) -> Tensor:
    """(left - mean) (right - mean)^T, float64, from left (m, width) and right (n, width)."""
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
    """1 if n features with this mean and trace of their Gram vary, 0 if they are constant; NaN counts as varying."""
    return (~(trace <= _STILL * n * mean.double().square().sum())).double()


def _without_diagonal(grams: Tensor) -> Tensor:
    return grams - torch.diag_embed(grams.diagonal(dim1=-2, dim2=-1))


def _normalized(hsic: Tensor) -> Tensor:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)); 0 where a boundary's own HSIC is zero."""
    own = hsic.diagonal().clamp(min=0)
    scale = torch.where(own > 0, own, torch.ones_like(own)).rsqrt() * (own > 0)
    result = hsic * torch.outer(scale, scale)
    result.diagonal().copy_((own > 0).to(result))
    return result
