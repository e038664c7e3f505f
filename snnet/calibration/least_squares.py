"""A least-squares fit from sums over feature vectors (SN-Net, Eq. 4 and 5).

With front features A (N, D) and end features B (N, E) of the same images, the stitch layer's weight M (D, E) and bias
b (E,) minimize ||A M + b - B||^2 (Eq. 4). The paper solves it by M = A^+ B (Eq. 5), which needs all N feature vectors
at once. Here the normal equations are solved instead: with A and B centered on their means,

    (A^T A) M = A^T B,    b = mean(B) - mean(A) M,

and A^T A (D, D) and A^T B (D, E) are sums over rows, which add up over images, ranks and joins. The sums are float64,
and A is scaled to unit variance, so that a channel of large values costs the others no digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

_WORST_CONDITION = 1e10
"""Condition number of the scaled covariance beyond which Cholesky's solution is not trusted."""
_CUTOFF = 1e-12
"""Eigenvalues of the scaled covariance below this share of the largest carry no information in float64 sums."""


@dataclass(frozen=True)
class LayerFit:
    """How well a stitch layer was fitted.

    Attributes:
        layer: index of the stitch layer.
        residual: share of the end features' variance that the fit leaves unexplained.
        rank: independent directions found in the front features, of `channels`.
        channels: width of the front features.
        condition: condition number of the front features' correlation matrix (inf where it is singular).
        rows: feature vectors that were fitted.
    """

    layer: int
    residual: float
    rank: int
    channels: int
    condition: float
    rows: int


class Sums:
    """Float64 sums over rows (feature vectors) from which a least-squares fit follows.

    Sums of two sets of rows add up to the sums of both.

    Args:
        front_channels: D, width of the front features A (N, D).
        end_channels: E, width of the end features B (N, E).
        device: where the sums live.

    Attributes:
        rows: N (1,).
        front: sum of the rows of A (D,).
        end: sum of the rows of B (E,).
        front_front: A^T A (D, D).
        front_end: A^T B (D, E).
        end_end: squared Frobenius norm of B (1,).
    """

    def __init__(self, front_channels: int, end_channels: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.rows = zeros(1)
        self.front = zeros(front_channels)
        self.end = zeros(end_channels)
        self.front_front = zeros(front_channels, front_channels)
        self.front_end = zeros(front_channels, end_channels)
        self.end_end = zeros(1)

    def tensors(self) -> list[Tensor]:
        """The sums themselves, in a fixed order."""
        return [self.rows, self.front, self.end, self.front_front, self.front_end, self.end_end]

    def add(self, front: Tensor, gram: Tensor, ends: Sequence[Tensor]) -> None:
        """Adds n rows, once for each of the ends that the front is paired with.

        Args:
            front: A (n, D).
            gram: A^T A (D, D), which the caller may share among several fits.
            ends: one or more B (n, E).
        """
        total = reduce(torch.add, ends)  # (n, E)
        self.rows += len(front) * len(ends)
        self.front += front.sum(0) * len(ends)
        self.end += total.sum(0)
        self.front_front += gram * len(ends)
        self.front_end += front.T @ total
        self.end_end += sum(torch.dot(flat, flat) for flat in (end.reshape(-1) for end in ends))

    def solve(self, layer: int = 0, ridge: float = 0.0) -> tuple[Tensor, Tensor, LayerFit]:
        """The weight and bias with the least squared error.

        Cholesky's decomposition solves the scaled normal equations. Where it fails, or where their condition is bad,
        an eigendecomposition does, without the directions that have no variance.

        Args:
            layer: index for the report.
            ridge: added to the unit diagonal of the correlation matrix. It shrinks the weight, and so moves
                predictions towards the mean of the end features. Rank and condition are those of what is solved.

        Returns:
            The weight M^T (E, D), the bias b (E,), and a report.
        """
        rows = self.rows.clamp(min=1)
        front_mean, end_mean = self.front / rows, self.end / rows  # (D,), (E,)
        covariance = self.front_front - torch.outer(self.front, front_mean)  # N cov(A, A): (D, D)
        cross = self.front_end - torch.outer(self.front, end_mean)  # N cov(A, B): (D, E)
        variance = covariance.diagonal()  # (D,)
        alive = variance > _CUTOFF * self.front_front.diagonal()
        scale = torch.where(alive, variance, torch.ones_like(variance)).rsqrt() * alive  # S: (D,)
        correlation = covariance * torch.outer(scale, scale)  # S cov S: (D, D), ones on the diagonal
        correlation += ridge * torch.diag(alive.to(correlation))
        scaled, rank, condition = _solve_symmetric(correlation, cross * scale[:, None], alive)  # S^-1 M: (D, E)
        weight = scaled * scale[:, None]  # M: (D, E)
        total = self.end_end - (self.end * end_mean).sum()  # ||B - mean(B)||^2
        explained = 2 * (weight * cross).sum() - (weight * (covariance @ weight)).sum()
        residual = float(((total - explained) / total.clamp(min=torch.finfo(torch.float64).tiny)).clamp(min=0))
        fit = LayerFit(layer, residual, rank, len(variance), condition, int(self.rows))
        return weight.T, end_mean - front_mean @ weight, fit


def _solve_symmetric(matrix: Tensor, right: Tensor, alive: Tensor) -> tuple[Tensor, int, float]:
    """Solves C X = R for a correlation matrix C.

    Args:
        matrix: C (D, D), with zero rows and columns where a channel has no variance.
        right: R (D, E).
        alive: which channels have variance (D,).

    Returns:
        X (D, E), the rank and the condition number of C.
    """
    dead = (~alive).to(matrix)
    factor, failed = torch.linalg.cholesky_ex(matrix + torch.diag(dead))
    if not int(failed):
        inverse = torch.cholesky_inverse(factor)
        condition = float(torch.linalg.matrix_norm(matrix, 1) * torch.linalg.matrix_norm(inverse, 1))
        if condition < _WORST_CONDITION:
            return torch.cholesky_solve(right, factor), int(alive.sum()), condition if bool(alive.all()) else torch.inf
    values, vectors = torch.linalg.eigh(matrix)  # C = V diag(values) V^T: (D,), (D, D)
    keep = values > _CUTOFF * values[-1].clamp(min=torch.finfo(values.dtype).tiny)
    inverse_values = torch.where(keep, 1 / torch.where(keep, values, torch.ones_like(values)), torch.zeros_like(values))
    rank = int(keep.sum())
    condition = float(values[-1] / values[0]) if rank == len(values) else torch.inf
    return vectors @ (inverse_values[:, None] * (vectors.T @ right)), rank, condition  # V diag(1 / values) V^T R
