"""What goes into a classifier, for heads that do not say it themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import SnnetError
from .new_head import classifier_modules


def pre_logits(model: nn.Module, head: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Runs a head and returns what its classifier receives; the mean where there are several.

    Args:
        model: the network, which says what its classifier is.
        head: from features to logits.
        x: features.

    Raises:
        SnnetError: the classifier is not known or does not run by itself.
    """
    received: list[Tensor] = []

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        received.append(given[0])

    handles = [module.register_forward_pre_hook(note) for module in classifier_modules(model)]
    try:
        head(x)
    finally:
        for handle in handles:
            handle.remove()
    if not received:
        raise SnnetError(f'{type(model).__name__} does not say what goes into its classifier (get_classifier)')
    return received[0] if len(received) == 1 else torch.stack(received).mean(0)
