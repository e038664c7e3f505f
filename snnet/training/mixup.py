"""Mixup, CutMix and label smoothing: images of a batch mixed in pairs, and their labels with them."""

from __future__ import annotations

from dataclasses import dataclass

from timm.data import Mixup

from ..config.sections import option


@dataclass
class MixupSettings:
    """How images and their labels are mixed and smoothed, and which loss they go into."""

    mixup: float = option(0.0, 'alpha of mixup', least=0)
    cutmix: float = option(0.0, 'alpha of cutmix', least=0)
    mixup_prob: float = option(1.0, 'probability of mixup or cutmix', least=0, most=1)
    mixup_switch_prob: float = option(0.5, 'probability of cutmix where both are on', least=0, most=1)
    smoothing: float = option(0.1, 'label smoothing', least=0, most=0.99)
    loss: str = option('ce', 'ce (cross entropy), or bce (each class by itself, yes or no)', choices=('ce', 'bce'))
    class_weights: str = option(
        '', "'balanced' (every class counts the same), or a CSV file with the name and the weight of every class"
    )

    @property
    def mixes(self) -> bool:
        """Whether images are mixed at all."""
        return self.mixup > 0 or self.cutmix > 0


def make_mixup(settings: MixupSettings, classes: int) -> Mixup | None:
    """timm's mixup and cutmix of a batch; None where both are off."""
    if not settings.mixes:
        return None
    return Mixup(
        settings.mixup, settings.cutmix, prob=settings.mixup_prob, switch_prob=settings.mixup_switch_prob,
        label_smoothing=settings.smoothing, num_classes=classes,
    )  # fmt: skip
