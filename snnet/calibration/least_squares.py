"""A least-squares fit from sums over its rows: in float64, centerd and scaled, exact where features are collinear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """Float64 sums over rows from which a least-squares fit follows; they add over batches, ranks and joins.

    Args:
        front_channels, end_channels: widths of the features.
        device: where the sums live.
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
        """Adds rows: front features (n, D) with their Gram matrix (D, D), paired with each of the ends (n, E)."""
        total = ends[0] if len(ends) == 1 else torch.stack(list(ends)).sum(0)
        self.rows += len(front) * len(ends)
        self.front += front.sum(0) * len(ends)
        self.end += total.sum(0)
        self.front_front += gram * len(ends)
        self.front_end += front.T @ total
        self.end_end += sum(end.square().sum() for end in ends)

    def solve(self, layer: int = 0, ridge: float = 0.0) -> tuple[Tensor, Tensor, LayerFit]:
        """The weight (E, D) and bias (E,) with the least squared error, and a report.

        The front features are centerd and scaled to unit variance; Cholesky solves the normal equations, or, where
        that fails or the condition is bad, an eigendecomposition that drops directions without variance.

        Args:
            layer: index for the report.
            ridge: added to the unit diagonal of the correlation matrix: shrinks the weight, and so predictions towards
                the mean of the end features. Rank and condition are those of what is solved.
        """
        rows = self.rows.clamp(min=1)
        front_mean, end_mean = self.front / rows, self.end / rows
        covariance = self.front_front - torch.outer(self.front, front_mean)
        cross = self.front_end - torch.outer(self.front, end_mean)
        variance = covariance.diagonal()
        alive = variance > _CUTOFF * self.front_front.diagonal()
        scale = torch.where(alive, variance, torch.ones_like(variance)).rsqrt() * alive
        correlation = covariance * torch.outer(scale, scale)
        correlation += ridge * torch.diag(alive.to(correlation))
        scaled, rank, condition = _solve_symmetric(correlation, cross * scale[:, None], alive)
        weight = scaled * scale[:, None]
        total = self.end_end - (self.end * end_mean).sum()
        explained = 2 * (weight * cross).sum() - (weight * (covariance @ weight)).sum()
        residual = float(((total - explained) / total.clamp(min=torch.finfo(torch.float64).tiny)).clamp(min=0))
        fit = LayerFit(layer, residual, rank, len(variance), condition, int(self.rows))
        return weight.T, end_mean - front_mean @ weight, fit


def _solve_symmetric(matrix: Tensor, right: Tensor, alive: Tensor) -> tuple[Tensor, int, float]:
    """Solution of matrix @ x = right, the rank and the condition number of a correlation matrix."""
    dead = (~alive).to(matrix)
    factor, failed = torch.linalg.cholesky_ex(matrix + torch.diag(dead))
    if not int(failed):
        inverse = torch.cholesky_inverse(factor)
        condition = float(torch.linalg.matrix_norm(matrix, 1) * torch.linalg.matrix_norm(inverse, 1))
        if condition < _WORST_CONDITION:
            return torch.cholesky_solve(right, factor), int(alive.sum()), condition if bool(alive.all()) else torch.inf
    values, vectors = torch.linalg.eigh(matrix)
    keep = values > _CUTOFF * values[-1].clamp(min=torch.finfo(values.dtype).tiny)
    inverse_values = torch.where(keep, 1 / torch.where(keep, values, torch.ones_like(values)), torch.zeros_like(values))
    rank = int(keep.sum())
    condition = float(values[-1] / values[0]) if rank == len(values) else torch.inf
    return vectors @ (inverse_values[:, None] * (vectors.T @ right)), rank, condition
