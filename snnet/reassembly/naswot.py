"""NASWOT, a training-free score of a network (Mellor et al. 2021; DeRy, section 3.3).

The code of image i has a bit per unit: whether its activation is positive. With n images and U units,

    K_ij = number of units whose bits images i and j share  (n, n),      NASWOT = log |det K|

It is high if the activations tell the images apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import activations, activations_me
from torch import Tensor, nn

from ..errors import SnnetError
from ..utils.eval_mode import eval_mode

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(activations.Swish, activations.Mish, activations.HardSwish, activations.HardMish),
    *(activations.GELUTanh, activations.QuickGELU),
    *(activations_me.SwishMe, activations_me.MishMe, activations_me.HardSwishMe, activations_me.HardMishMe),
    getattr(activations, 'GELU', nn.GELU),
)
"""Modules whose output is positive exactly where their input is, unlike that of sigmoids."""

_COLUMNS = 1 << 20
"""Units whose codes are compared at a time: float32 counts them exactly."""


@dataclass(frozen=True)
class CodeScore:
    """The NASWOT score of a network.

    Attributes:
        plain: log |det K|, averaged over the batches, where K_ij is the number of units whose code images i and j
            share. It grows with the number of units, and so ranks networks mostly by that.
        normalized: the same of K / units: at most 0, and comparable between networks of different size. It is
            `plain` minus the batch size times log(units).
        units: activations per image.
    """

    plain: float
    normalized: float
    units: int


def naswot_score(
    network: nn.Module,
    batches: Iterable[Tensor | Sequence[Any]],
    progress: Callable[[int], object] | None = None,
) -> CodeScore:
    """Scores a network in eval mode, without labels or gradients.

    Only activations that are modules (see `ACTIVATIONS`) are
    seen, not calls of functions. Eigenvalues of K / units are clamped to at least n times the rounding unit of float64,
    so the score stays finite if K is singular, as with an image that occurs twice.

    Args:
        network: any module that takes images; hooks are removed again and modes restored.
        batches: images (n, C, H, W), or pairs that begin with them; all with the same number of images.
        progress: called with the number of images after each batch.

    Raises:
        SnnetError: no activation module runs, no batch, batches of different sizes or of fewer than two images, or
            activations that are not finite.
    """
    plain: list[float] = []
    images = units = 0
    weight = next(network.parameters(), torch.empty(0))
    for batch in batches:
        x = batch if isinstance(batch, Tensor) else batch[0]
        if len(x) < 2 or images not in (0, len(x)):
            raise SnnetError(f'NASWOT compares batches of one size, with at least 2 images, not {len(x)}')
        images = len(x)
        kernel, units = _kernel(network, x.to(weight.device))
        plain.append(_log_det(kernel / units) + images * math.log(units))
        if progress is not None:
            progress(images)
    if not plain:
        raise SnnetError('no images to score the network with')
    mean = math.fsum(plain) / len(plain)
    return CodeScore(mean, mean - images * math.log(units), units)


@torch.no_grad()
def _kernel(network: nn.Module, images: Tensor) -> tuple[Tensor, int]:
    """The kernel K (n, n), float64, and the number of units."""
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)
    units = 0

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal kernel, units
        if not bool(output.isfinite().all()):
            raise SnnetError(f'an activation ({module}) is not finite: check weights and images')
        if len(output) % len(images):
            raise SnnetError(f'an activation ({module}) mixes images: NASWOT needs one code per image')
        codes = (output > 0).reshape(len(images), -1)  # windows of one image lie together
        units += codes.shape[1]
        for first in range(0, codes.shape[1], _COLUMNS):
            signs = codes[:, first : first + _COLUMNS].float() * 2 - 1  # products count shared bits minus the others
            kernel += (signs @ signs.T).double()

    with ExitStack() as stack:
        stack.enter_context(eval_mode(network))
        for module in network.modules():
            if isinstance(module, ACTIVATIONS):
                stack.callback(module.register_forward_hook(add).remove)
        network(images)
    if not units:
        raise SnnetError(
            f'{type(network).__name__} runs no activation module (ReLU, GELU, SiLU ...), so NASWOT cannot score it'
        )
    return (kernel + units) / 2, units


def _log_det(kernel: Tensor) -> float:
    """log det of a positive semidefinite matrix (n, n) with unit diagonal, kept finite (see `naswot_score`)."""
    floor = torch.finfo(torch.float64).eps * len(kernel)
    return float(torch.linalg.eigvalsh(kernel).clamp(min=floor).log().sum())
