"""Where a network runs: what its latency depends on besides itself."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

import torch
from torch import nn

from ..anchors.anchor import Anchor
from ..budget.latency_table import Setup


def setup_of(network: nn.Module) -> Setup:
    """The setup in which a call of this network would run now (its device, type and threads, and whether compiled)."""
    weight = next(network.parameters())
    kind = weight.device.type
    dtype = str(weight.dtype).removeprefix('torch.')
    if torch.is_autocast_enabled(kind):
        dtype = f'{str(torch.get_autocast_dtype(kind)).removeprefix("torch.")} autocast'
    anchors = getattr(network, 'anchors', (network,))  # looked up, because walking over all modules takes far longer
    blocks = (block for anchor in anchors if isinstance(anchor, Anchor) for block in anchor.line())
    compiled = any(block._compiled_call_impl is not None for block in blocks)
    return Setup(
        device=kind,
        hardware=torch.cuda.get_device_name(weight.device) if kind == 'cuda' else processor(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        dtype=dtype,
        backend='compile' if compiled else 'eager',
    )


@cache
def processor() -> str:
    """Name of this machine's processor."""
    info = Path('/proc/cpuinfo')
    found = re.search(r'^model name\s*:\s*(.+)$', info.read_text(), re.M) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
