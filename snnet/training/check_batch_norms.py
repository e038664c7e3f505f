"""Whether every BatchNorm of a net can be trained with batches of one image."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SnnetError
from ..net.stitchable_net import StitchableNet
from ..utils.eval_mode import eval_mode


@torch.no_grad()
def check_batch_norms(net: StitchableNet, batch_size: int) -> None:
    """Refuses batches of one image where a BatchNorm sees a single value per channel, which has no variance.

    Args:
        net: the network to train.
        batch_size: images per batch.

    Raises:
        SnnetError: names the BatchNorm.
    """
    norms = {
        name: module for name, module in net.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    if batch_size > 1 or not norms:
        return
    single: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            values: Tensor = inputs[0]
            if values.numel() == values.shape[1]:
                single.append(name)

        return look

    for i in range(len(net.anchors)):
        anchor = net.anchor(i)
        if anchor.frozen:  # it stays in eval mode
            continue
        weight = next(anchor.parameters())
        with ExitStack() as stack, eval_mode(net):
            for name, norm in norms.items():
                stack.callback(norm.register_forward_pre_hook(note(name)).remove)
            anchor(torch.zeros(1, *anchor.input_size, device=weight.device, dtype=weight.dtype))
    if single:
        raise SnnetError(
            f'batch_size 1 gives {single[0]} a single value per channel, which BatchNorm cannot be trained with: '
            f'raise --batch-size, or --img-size'
        )
