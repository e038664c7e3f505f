"""The branches beside a convolution: each is linear up to its BatchNorms and folds into one kernel and one bias."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from ..utils.batch_norm import SafeBatchNorm2d
from .kernel_window import Window


class Branch(nn.Module):
    """Something linear over a window, then a BatchNorm.

    Args:
        window: of the convolution that it stands beside.
    """

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window
        self.norm = SafeBatchNorm2d(window.channels[1])

    @classmethod
    def obstacle(cls, window: Window) -> str | None:
        """Why there is no such branch for a window; None where there is."""
        return None

    def draw(self, generator: torch.Generator | None) -> None:
        """Draws the weights as torch's convolutions do: uniform within 1 / sqrt(fan in), on the CPU."""
        for parameter in self.parameters():
            if parameter.ndim == 4:
                bound = 1 / math.sqrt(parameter[0].numel())
                with torch.no_grad():
                    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))

    def features(self, x: Tensor) -> Tensor:
        """What the last BatchNorm normalizes: (N, in, H, W) to (N, out, H', W')."""
        raise NotImplementedError

    def linear(self) -> tuple[Tensor, Tensor]:
        """Kernel (out, in / groups, rows, columns) and bias (out) of `features` in eval mode, in float64."""
        raise NotImplementedError

    def flops(self, grid: tuple[int, int], out_grid: tuple[int, int]) -> int:
        """Multiply-adds an image, of the convolutions alone."""
        raise NotImplementedError

    def calibrate(self, x: Tensor) -> None:
        """Gives the BatchNorms the statistics of an input."""
        settle(self.norm, self.features(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H', W')."""
        return self.norm(self.features(x))

    def fold(self) -> tuple[Tensor, Tensor]:
        """Kernel (out, in / groups, rows, columns) and bias (out) of the branch in eval mode, in float64."""
        weight, bias = self.linear()
        scale, shift = affine(self.norm)
        return weight * scale[:, None, None, None], bias * scale + shift


class Part(Branch):
    """A kernel that covers a part of the window, around its center: 1 x 1, 1 x k or k x 1."""

    rows = columns = False
    """Whether it is as high, and as wide, as the window."""

    def __init__(self, window: Window) -> None:
        super().__init__(window)
        size = window.kernel[0] if self.rows else 1, window.kernel[1] if self.columns else 1
        self.at = 0 if self.rows else window.center[0], 0 if self.columns else window.center[1]
        self.weight = nn.Parameter(torch.empty(window.channels[1], window.inputs, *size))

    @override
    def features(self, x: Tensor) -> Tensor:
        return self.window.slide(x, self.weight, self.at)

    @override
    def linear(self) -> tuple[Tensor, Tensor]:
        (top, left), (rows, columns) = self.at, self.weight.shape[2:]
        weight = exact(self.weight)
        whole = weight.new_zeros(*weight.shape[:2], *self.window.kernel)
        whole[:, :, top : top + rows, left : left + columns] = weight
        return whole, weight.new_zeros(len(weight))

    @override
    def flops(self, grid: tuple[int, int], out_grid: tuple[int, int]) -> int:
        rows, columns = self.weight.shape[2:]
        return self.window.flops(len(self.weight), (rows, columns), out_grid)


class Row(Part):
    """1 x k."""

    columns = True


class Column(Part):
    """k x 1."""

    rows = True


class _Twofold(Branch):
    """A 1 x 1 convolution and a BatchNorm, then something over the window, whose padding is that BatchNorm's zero."""

    def __init__(self, window: Window, width: int) -> None:
        super().__init__(window)
        self.first = nn.Parameter(torch.empty(width, window.inputs, 1, 1))
        self.inner = SafeBatchNorm2d(width)

    def over_window(self, z: Tensor) -> Tensor:
        """What follows the inner BatchNorm, with zeros for padding."""
        raise NotImplementedError

    @override
    def features(self, x: Tensor) -> Tensor:
        """Outside the image the inner BatchNorm has its image of zero, `c`: z is padded by zeros as z - c, plus c."""
        u = F.conv2d(x, self.first, groups=self.window.groups)
        z = self.inner(u)
        if self.window.mode != 'zeros' or not any(self.window.pads(x.shape)):
            return self.over_window(z)
        c = _image_of_zero(self.inner, u).to(z.dtype)[None, :, None, None]
        return self.over_window(z - c) + self.of_constant(c)

    def of_constant(self, c: Tensor) -> Tensor:
        """What becomes of a map that is the same everywhere, (1, width, 1, 1) to (1, out, 1, 1)."""
        raise NotImplementedError

    def inner_linear(self) -> tuple[Tensor, Tensor]:
        """The first two steps as a matrix (width, in / groups) and a bias (width), in float64."""
        scale, shift = affine(self.inner)
        return exact(self.first)[:, :, 0, 0] * scale[:, None], shift

    @override
    def calibrate(self, x: Tensor) -> None:
        settle(self.inner, F.conv2d(x, self.first, groups=self.window.groups))
        super().calibrate(x)


class Squeezed(_Twofold):
    """1 x 1, then k x k; as many channels between them as come in, or a given number."""

    def __init__(self, window: Window, width: int | None = None) -> None:
        width = window.channels[0] if width is None else width
        super().__init__(window, width)
        self.weight = nn.Parameter(torch.empty(window.channels[1], width // window.groups, *window.kernel))

    @override
    def over_window(self, z: Tensor) -> Tensor:
        return self.window.slide(z, self.weight)

    @override
    def of_constant(self, c: Tensor) -> Tensor:
        return F.conv2d(c.expand(-1, -1, *self.window.kernel), self.weight, groups=self.window.groups)

    @override
    def linear(self) -> tuple[Tensor, Tensor]:
        first, shift = self.inner_linear()
        second, groups = exact(self.weight), self.window.groups
        parts = zip(second.chunk(groups), first.chunk(groups), shift.chunk(groups), strict=True)
        folded = [(torch.einsum('omrc,mi->oirc', w, a), torch.einsum('omrc,m->o', w, b)) for w, a, b in parts]
        return torch.cat([w for w, _ in folded]), torch.cat([b for _, b in folded])

    @override
    def flops(self, grid: tuple[int, int], out_grid: tuple[int, int]) -> int:
        first = self.window.flops(len(self.first), (1, 1), grid)
        return first + self.weight.numel() * math.prod(out_grid)


class Averaged(_Twofold):
    """1 x 1, then the mean over the window."""

    def __init__(self, window: Window) -> None:
        super().__init__(window, window.channels[1])

    @override
    def over_window(self, z: Tensor) -> Tensor:
        return self.window.average(z)

    @override
    def of_constant(self, c: Tensor) -> Tensor:
        return c

    @override
    def linear(self) -> tuple[Tensor, Tensor]:
        first, shift = self.inner_linear()
        kernel = self.window.kernel
        return (first / math.prod(kernel))[:, :, None, None].expand(-1, -1, *kernel).contiguous(), shift

    @override
    def flops(self, grid: tuple[int, int], out_grid: tuple[int, int]) -> int:
        return self.window.flops(len(self.first), (1, 1), grid)


class Identity(Branch):
    """The BatchNorm alone."""

    @classmethod
    @override
    def obstacle(cls, window: Window) -> str | None:
        if window.channels[0] != window.channels[1]:
            return f'{window.channels[0]} channels become {window.channels[1]}'
        if window.own_tap is None:
            return 'its output has other places than its input (stride or padding)'
        return None

    @override
    def features(self, x: Tensor) -> Tensor:
        return x

    @override
    def linear(self) -> tuple[Tensor, Tensor]:
        tap, out = self.window.own_tap, self.window.channels[1]
        assert tap is not None  # see obstacle
        gamma = exact(self.norm.weight)
        whole = gamma.new_zeros(out, self.window.inputs, *self.window.kernel)
        each = torch.arange(out, device=gamma.device)
        whole[each, each % self.window.inputs, tap[0], tap[1]] = 1
        return whole, gamma.new_zeros(out)

    @override
    def flops(self, grid: tuple[int, int], out_grid: tuple[int, int]) -> int:
        return 0


CONVOLUTION: dict[str, type[Branch]] = {
    '1x1': Part,
    '1x1_kxk': Squeezed,
    '1x1_avg': Averaged,
    '1xk': Row,
    'kx1': Column,
    'identity': Identity,
}
"""The branches of a convolution by kind; with the convolution itself, k x k, they are DyRep's seven."""

DBB = ('1x1', '1x1_kxk', '1x1_avg')
"""The kinds that make the Diverse Branch Block of four branches, with the convolution itself."""


def exact(tensor: Tensor) -> Tensor:
    """A detached tensor in float64 (on the CPU where the device has no such type)."""
    return tensor.detach().to('cpu' if tensor.device.type == 'mps' else tensor.device, torch.float64)


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel that a BatchNorm is in eval mode, in float64."""
    mean, var = statistics(norm)
    scale = exact(norm.weight) / (var + norm.eps).sqrt()
    return scale, exact(norm.bias) - mean * scale


def statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The running mean and variance of a BatchNorm in float64."""
    assert norm.running_mean is not None  # branches are made with statistics
    assert norm.running_var is not None
    return exact(norm.running_mean), exact(norm.running_var)


def settle(norm: nn.BatchNorm2d, x: Tensor) -> None:
    """Gives a BatchNorm the mean and variance of its input (N, C, H, W)."""
    var, mean = torch.var_mean(_wide(x), dim=(0, 2, 3), correction=0)
    with torch.no_grad():
        statistics_of(norm, mean, var)


def statistics_of(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor) -> None:
    """Writes the running mean and variance of a BatchNorm."""
    norm.get_buffer('running_mean').copy_(mean)
    norm.get_buffer('running_var').copy_(var)


def _image_of_zero(norm: nn.BatchNorm2d, u: Tensor) -> Tensor:
    """What a BatchNorm that is given `u` makes of zero, by the batch's statistics in train mode."""
    mean, var = norm.running_mean, norm.running_var
    if norm.training:
        var, mean = torch.var_mean(_wide(u), dim=(0, 2, 3), correction=0)
    assert mean is not None  # branches are made with statistics
    assert var is not None
    return norm.bias - mean * norm.weight * (var + norm.eps).rsqrt()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
