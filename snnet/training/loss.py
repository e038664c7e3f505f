"""The loss of a stitch without a teacher: cross entropy with label smoothing, on images that may be mixed up."""

from __future__ import annotations

from dataclasses import dataclass

from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from ..config.sections import option


@dataclass
class MixupSettings:
    """How images and their labels are mixed up and smoothed."""

    mixup: float = option(0.0, 'alpha of mixup')
    cutmix: float = option(0.0, 'alpha of cutmix')
    mixup_prob: float = option(1.0, 'probability of mixup or cutmix')
    mixup_switch_prob: float = option(0.5, 'probability of cutmix where both are on')
    smoothing: float = option(0.1, 'label smoothing')

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


def make_loss(settings: MixupSettings) -> nn.Module:
    """The criterion for logits and targets; targets are shares of classes where images are mixed up."""
    loss: nn.Module = nn.CrossEntropyLoss()
    if settings.mixes:
        loss = SoftTargetCrossEntropy()
    elif settings.smoothing > 0:
        loss = LabelSmoothingCrossEntropy(settings.smoothing)
    return loss
