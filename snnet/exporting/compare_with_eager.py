"""Whether an exported file computes what eager computes, by how much it may be off, and on which batches."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SnnetError
from .formats import Run
from .prepared_stitch import PreparedStitch

BATCHES = (1, 2, 5)
"""Batch sizes on which a file with a dynamic batch is compared with eager."""
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest difference to eager, as a share of the largest logit. Rounding makes about 1e-5 of it in float32."""


def batch_sizes(prepared: PreparedStitch) -> tuple[int, ...]:
    """The batches on which a file is compared: of the only size that it accepts, or of a few sizes."""
    return (prepared.batch,) if prepared.batch else BATCHES


def eager_logits(prepared: PreparedStitch) -> dict[int, Tensor]:
    """Logits of the stitch on random images in float64, by the number of images.

    Raises:
        SnnetError: they are not finite.
    """
    logits = {count: prepared.module(prepared.random_images(count)).double() for count in batch_sizes(prepared)}
    if not all(bool(found.isfinite().all()) for found in logits.values()):
        raise SnnetError(
            f'{prepared.module.stitch} is not exported: '
            f'its own logits are not finite on random images in {prepared.dtype}'
        )
    return logits


def compare_with_eager(prepared: PreparedStitch, run: Run, eager: dict[int, Tensor]) -> tuple[float, float]:
    """Largest difference between the logits of a file and of eager, and the largest logit.

    Raises:
        SnnetError: the difference is more than rounding.
    """
    name = prepared.module.stitch
    difference = largest = 0.0
    for count, expected in eager.items():
        logits = run(prepared.random_images(count)).double()  # (count, classes)
        if logits.shape != expected.shape:
            raise SnnetError(f'the exported {name} gives logits {tuple(logits.shape)}, eager {tuple(expected.shape)}')
        found = float((logits - expected).abs().max())
        largest = max(largest, float(expected.abs().max()))
        allowed = max(TOLERANCE[prepared.dtype] * float(expected.abs().max()), 1e-6)
        if not found <= allowed:  # also refuses NaN
            raise SnnetError(
                f'{name} is not exported: on a batch of {count} the file differs from eager by {found:.2g}, '
                f'but rounding explains at most {allowed:.2g}'
            )
        difference = max(difference, found)
    return difference, largest
