"""The loss of a stitch without a teacher: with smoothed labels and weighted classes, on images that may be mixed."""

from __future__ import annotations

from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from .mixup import MixupSettings


def make_loss(settings: MixupSettings, mixed: bool, weights: Tensor | None = None) -> nn.Module:
    """The criterion for logits (N, classes) and targets.

    Args:
        settings: which.
        mixed: whether images are mixed, so that targets are shares of classes (N, classes) instead of classes (N,).
        weights: of the classes (classes,); equal ones where None.
    """
    smoothing = 0.0 if mixed else settings.smoothing  # mixing has smoothed the labels
    loss: nn.Module = nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing)
    if settings.loss == 'bce':
        loss = BinaryLoss(smoothing, weight=weights)
    elif weights is None and mixed:
        loss = SoftTargetCrossEntropy()
    elif weights is None and smoothing > 0:
        loss = LabelSmoothingCrossEntropy(smoothing)
    return loss


class BinaryLoss(BinaryCrossEntropy):  # type: ignore[misc]  # timm does not annotate it
    """timm's binary cross entropy, also for labels that are whole numbers: 0 or 1 for every class (N, classes)."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Mean loss of logits (N, classes) and classes (N,) or labels (N, classes)."""
        loss: Tensor = super().forward(x, target.to(x.dtype) if target.shape == x.shape else target)
        return loss
