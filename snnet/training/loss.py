"""The loss of a stitch without a teacher: with smoothed labels and weighted classes, on images that may be mixed up."""

from __future__ import annotations

from dataclasses import dataclass

from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from ..config.sections import option


@dataclass
class MixupSettings:
    """How images and their labels are mixed up and smoothed."""

    mixup: float = option(0.0, 'alpha of mixup')
    cutmix: float = option(0.0, 'alpha of cutmix')
    mixup_prob: float = option(1.0, 'probability of mixup or cutmix')
    mixup_switch_prob: float = option(0.5, 'probability of cutmix where both are on')
    smoothing: float = option(0.1, 'label smoothing')
    loss: str = option('ce', 'ce (cross entropy), or bce (each class by itself, yes or no)', choices=('ce', 'bce'))
    class_weights: str = option(
        '', "'balanced' (every class counts the same), or a CSV file with the name and the weight of every class"
    )

    @property
    def mixes(self) -> bool:
        """Whether images are mixed up at all."""
        return self.mixup > 0 or self.cutmix > 0


def make_mixup(settings: MixupSettings, classes: int) -> Mixup | None:
    """timm's mixup and cutmix of a batch; None where both are off."""
    if not settings.mixes:
        return None
    return Mixup(
        settings.mixup, settings.cutmix, prob=settings.mixup_prob, switch_prob=settings.mixup_switch_prob,
        label_smoothing=settings.smoothing, num_classes=classes,
    )  # fmt: skip


def make_loss(settings: MixupSettings, mixed: bool, weights: Tensor | None = None) -> nn.Module:
    """The criterion for logits (N, classes) and targets.

    Args:
        settings: which.
        mixed: whether images are mixed up, so that targets are shares of classes (N, classes) instead of classes (N,).
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
