"""Compiles the blocks of a net before the first step, so that no later step has to wait for it."""

from __future__ import annotations

import torch

from ..net.compile_blocks import compile_blocks, warm_up
from ..net.stitchable_net import StitchableNet
from .compute_settings import TrainComputeSettings


def compile_net(net: StitchableNet, compute: TrainComputeSettings, batch: int, quiet: bool) -> None:
    """Compiles the blocks, and runs each once in train mode.

    Args:
        net: on the device that it trains on.
        compute: how the steps will run.
        batch: images per step.
        quiet: show no progress.
    """
    compile_blocks(net)
    net.train()
    device = next(net.parameters()).device
    images = torch.zeros(batch, *net.input_size, device=device)
    if compute.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    with compute.autocast(device):
        warm_up(net, images, quiet=quiet)
