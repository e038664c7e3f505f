"""Small nets on the device, and what of them is equal to that on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch

import snnet
from tests.helpers.families import shared_net
from tests.helpers.rounding import rounding

TERMS = 4096
"""Numbers that the longest sums of these small networks add up, over all layers."""


def moved(name: str, device: torch.device) -> snnet.StitchableNet:
    if device.type == 'cpu' and name not in ('vit', 'resnet', 'levit'):
        pytest.skip('other tests run this family on a CPU')
    return copy.deepcopy(shared_net(name)).to(device)


def near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal up to the rounding of float32."""
    found, wanted = found.cpu(), wanted.cpu()
    return float((found - wanted).abs().max()) <= rounding(torch.float32, TERMS) * float(wanted.abs().max())
