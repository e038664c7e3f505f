"""NASWOT: how differently a network's activations code different images (Mellor et al. 2021; DeRy, section 3.3)."""

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
from ..utils.modes import eval_mode

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(activations.Swish, activations.Mish, activations.HardSwish, activations.HardMish),
    *(activations.GELUTanh, activations.QuickGELU),
    *(activations_me.SwishMe, activations_me.MishMe, activations_me.HardSwishMe, activations_me.HardMishMe),
    getattr(activations, 'GELU', nn.GELU),
)
"""Modules whose output is positive exactly where their input is; sigmoids are not, and code nothing."""

_COLUMNS = 1 << 20
"""Units whose codes are compared at a time: float32 counts them exactly."""


@dataclass(frozen=True)
class CodeScore:
    """NASWOT of a network.

    Attributes:
        plain: log |det K|, averaged over the batches, where K_ij is the number of units whose code images i and j
            share. It grows with the number of units, and so ranks networks mostly by that.
        normalized: the same of K / units, the shares of units: at most 0, and comparable between networks of
            different size. It is `plain` less the batch size times log(units).
        units: activations an image.
    """

    plain: float
    normalized: float
    units: int


def naswot_score(
    network: nn.Module,
    batches: Iterable[Tensor | Sequence[Any]],
    progress: Callable[[int], object] | None = None,
) -> CodeScore:
    """Log-determinant of the kernel of activation codes, in eval mode, without labels or gradients.

    The code of a unit is whether its activation is positive. Only activations that are modules (see `ACTIVATIONS`) are
    seen, not calls of functions. Eigenvalues of K / units count as float64's rounding unit times the number of images
    at least: so the score stays finite where K is singular, as with an image that occurs twice.

    Args:
        network: any module from images to whatever it gives; hooks are removed again and modes put back.
        batches: images (n, C, H, W), or pairs whose first item they are; all of one number of images.
        progress: is told the number of images after each batch.

    Raises:
        SnnetError: no activation module runs, no batch, batches of different or less than two images, or activations
            that are not finite.
    """
    plain: list[float] = []
    images = units = 0
    weight = next(network.parameters(), torch.empty(0))
    for batch in batches:
        x = batch if isinstance(batch, Tensor) else batch[0]
        if len(x) < 2 or images not in (0, len(x)):
            raise SnnetError(f'NASWOT compares the images of batches of one size, at least 2, not {len(x)}')
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
    """Number of units whose codes each two images share (n, n), float64, and the number of all units."""
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)
    units = 0

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal kernel, units
        if not bool(output.isfinite().all()):
            raise SnnetError(f'an activation ({module}) is not finite: check weights and images')
        if len(output) % len(images):
            raise SnnetError(f'an activation ({module}) mixes images: NASWOT needs one code for each')
        codes = (output > 0).reshape(len(images), -1)  # windows of one image lie together
        units += codes.shape[1]
        for part in codes.split(_COLUMNS, 1):
            signs = part.float() * 2 - 1  # products count shared codes minus others
            kernel += (signs @ signs.T).double()

    with ExitStack() as stack:
        stack.enter_context(eval_mode(network))
        for module in network.modules():
            if isinstance(module, ACTIVATIONS):
                stack.callback(module.register_forward_hook(add).remove)
        network(images)
    if not units:
        raise SnnetError(f'{type(network).__name__} runs no activation module (ReLU, GELU, SiLU ...): NASWOT sees none')
    return (kernel + units) / 2, units


def _log_det(kernel: Tensor) -> float:
    """log det of a symmetric matrix with unit diagonal and no negative eigenvalue, kept finite (see `naswot_score`)."""
    floor = torch.finfo(torch.float64).eps * len(kernel)
    return float(torch.linalg.eigvalsh(kernel).clamp(min=floor).log().sum())
