"""A linear classifier on fixed features, fitted in float64; held-out images decide how strongly it is held back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import SnnetError
from ..utils.seeds import generator

RIDGES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
"""Weights of the squared norm that are tried, from strong to weak; of features whose standard deviation is one."""
_HELD_OUT = 0.2
"""Share of the images of each class that judge."""
_STEPS = 50
"""Most steps of L-BFGS for one ridge; each starts where the one before it ended."""

Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Probe:
    """A linear classifier.

    Attributes:
        weight: (classes, features), float64.
        bias: (classes,), float64.
        ridge: the weight of the squared norm that did best on held-out images.
        loss: mean loss on them of the classifier that was fitted without them.
        judged: logits (n, classes) that it gives them.
    """

    weight: Tensor
    bias: Tensor
    ridge: float
    loss: float
    judged: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features (N, D) to logits (N, classes), float64."""
        return F.linear(features.double(), self.weight, self.bias)


def hold_out(targets: Tensor, seed: int = 0) -> Tensor:
    """Which images judge a probe: a fifth of each class, drawn by the seed, and at least one of each.

    Args:
        targets: classes (N,); or labels (N, classes), of which a fifth of all images judge.
        seed: of the draw.

    Returns:
        True for the images that judge (N,).

    Raises:
        SnnetError: a class with a single image.
    """
    held = torch.zeros(len(targets), dtype=torch.bool)
    if targets.ndim > 1:
        targets = targets.new_zeros(len(targets))
    for label in sorted(set(targets.tolist())):
        places = (targets == label).nonzero()[:, 0]
        if len(places) < 2:
            raise SnnetError(
                f'class {label} has one image, but a classifier needs two of each: one to fit, one to judge'
            )
        order = torch.randperm(len(places), generator=generator(seed, 'hold out', int(label)))
        held[places[order[: max(1, round(_HELD_OUT * len(places)))]]] = True
    return held


def fit_probe(
    features: Tensor,
    targets: Tensor,
    classes: int,
    held_out: Tensor,
    criterion: Criterion = F.cross_entropy,
    ridges: Iterable[float] = RIDGES,
) -> Probe:
    """Fits a linear classifier by L-BFGS, then once more with all images and the ridge that did best.

    The loss is convex, so the result depends on no start; the steps are deterministic.

    Args:
        features: (N, D).
        targets: classes (N,) or labels (N, classes), whichever the criterion takes.
        classes: width of the logits.
        held_out: True for the images that judge (N,).
        criterion: mean loss of logits (n, classes) and targets.
        ridges: weights of the squared norm, from strong to weak.
    """
    features = features.double().cpu()
    fitted = ~held_out
    weight, bias = features.new_zeros(classes, features.shape[1]), features.new_zeros(classes)
    best: Probe | None = None
    for ridge in ridges:
        weight, bias, mean, std = _minimized(features[fitted], targets[fitted], weight, bias, ridge, criterion)
        judged = F.linear((features[held_out] - mean) / std, weight, bias)
        loss = float(criterion(judged, targets[held_out]))
        if best is not None and loss >= best.loss:
            break  # weaker ones fit the images of the fit, no longer the others
        best, start = Probe(weight, bias, ridge, loss, judged), (weight, bias)
    assert best is not None
    weight, bias, mean, std = _minimized(features, targets, *start, best.ridge, criterion)
    weight = weight / std  # the same map for features as they are
    return replace(best, weight=weight, bias=bias - weight @ mean)


def _minimized(
    features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, ridge: float, criterion: Criterion
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight and bias for standardized features, with their mean and standard deviation; from a start."""
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    std = torch.where(std > 1e-6 * std.max().clamp(min=1e-30), std, torch.ones_like(std))  # a channel that never moves
    rows = (features - mean) / std  # (N, D)
    weight, bias = (x.clone().requires_grad_() for x in (weight, bias))
    solver = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, tolerance_grad=1e-6, line_search_fn='strong_wolfe')

    def closure() -> Tensor:
        solver.zero_grad()
        loss = criterion(F.linear(rows, weight, bias), targets) + ridge / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        return loss

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]  # nor this
    return weight.detach(), bias.detach(), mean, std
