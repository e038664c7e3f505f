"""A moving average of the weights, which becomes the saved net."""

from __future__ import annotations

from dataclasses import dataclass

from timm.utils import ModelEmaV3

from ..config.sections import option
from ..net.stitchable_net import StitchableNet


@dataclass
class AverageSettings:
    """Whether the saved net is a moving average of the weights."""

    model_ema: bool = option(False, 'keep a moving average of the weights, and save it as the net')
    model_ema_decay: float = option(0.9998, 'decay of the moving average', least=0, most=1)


def make_average(settings: AverageSettings, net: StitchableNet) -> ModelEmaV3 | None:
    """The average, if there is one; its decay grows from 0, so that short runs do not keep their first weights."""
    return ModelEmaV3(net, decay=settings.model_ema_decay, use_warmup=True) if settings.model_ema else None
