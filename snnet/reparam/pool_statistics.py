"""BatchNorm statistics of grown stitch layers over all stitches that share them, before they are folded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.eval_mode import eval_mode
from .batch_norm_algebra import set_running_statistics
from .block import Block
from .rep_layers import RepStitchLayer

ROUNDS = 2
"""A branch has two BatchNorms in a row at most: the second sees right inputs once the first has its statistics."""


def grown_stitch_layers(network: nn.Module) -> dict[str, Block]:
    """The stitch layers that have branches, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, RepStitchLayer)}


def pool_statistics(net: Any, batches: Iterable[Tensor]) -> None:
    """Gives the BatchNorms of grown stitch layers the statistics of all stitches that run them, each counted equally.

    The running statistics that training leaves depend on which stitches were drawn last, and on weights that have
    changed since. In eval mode, the outputs of the net change.

    Args:
        net: a StitchableNet.
        batches: training images (N, C, H, W), kept until the end.
    """
    layers = grown_stitch_layers(net)
    norms = [module for layer in layers.values() for module in layer.modules() if isinstance(module, nn.BatchNorm2d)]
    stitches = [
        stitch
        for stitch in range(len(net.stitches))
        if any(f'{name}.weight' in net.parameter_names(stitch) for name in layers)
    ]
    if not norms or not stitches:
        return
    kept = list(batches)
    for _ in range(ROUNDS):
        sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}
        handles = [norm.register_forward_pre_hook(_adding_to(sums[norm])) for norm in norms]
        try:
            with eval_mode(net), torch.no_grad():
                for images in kept:
                    for stitch in stitches:
                        net(images, stitch=stitch)
        finally:
            for handle in handles:
                handle.remove()
        for norm, total in sums.items():
            count, first, second = total  # (C) each
            if bool(count.all()) and bool(total.isfinite().all()):
                mean = first / count
                set_running_statistics(norm, mean, (second / count - mean.square()).clamp(min=0))


def _adding_to(total: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that adds number, sum and sum of squares of each channel of an input (N, C, H, W) to a tensor (3, C)."""

    def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach().to('cpu', torch.float64)
        total[0] += x.numel() // x.shape[1]
        total[1] += x.sum((0, 2, 3))
        total[2] += x.square().sum((0, 2, 3))

    return add
