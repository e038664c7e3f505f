"""A convolution or stitch layer with branches: the same module under another class; its name, kernel and hooks stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from .batch_norm_algebra import (
    as_float64,
    running_statistics,
    scale_and_shift,
    set_running_statistics,
    take_statistics_of,
)
from .branch import Branch
from .kernel_window import KernelWindow

_LEAST_SCALE = 1e-2
"""If the main BatchNorm scales by less than this, it is reset to scale by 1: dividing by it would lose digits."""


class Block(nn.Module):
    """y = norm(kernel * x) + sum of branches(x) + bias: a main branch and the branches beside it.

    Mixed into the class of the plain module, whose parameters stay. Code that reads the plain module's weight finds
    the kernel of the main branch.

    Attributes:
        norm: the BatchNorm of the main branch.
        branches: by kind.
        window: where the kernel lands.
    """

    plain: type[nn.Module]
    kinds: Mapping[str, type[Branch]]
    """The branches that such a module may have, by kind."""

    weight: Any
    bias: Any  # a parameter, or None; torch's own classes disagree on how to say it
    norm: nn.BatchNorm2d
    branches: nn.ModuleDict
    window: KernelWindow

    @property
    def branch_of(self) -> dict[str, Branch]:
        """The branches by kind."""
        return cast('dict[str, Branch]', dict(self.branches.items()))

    def run_branches(self, x: Tensor) -> Tensor:
        """The sum of all branches and the bias: (N, in, H, W) to (N, out, H', W')."""
        y: Tensor = self.norm(self.window.slide(x, _as_kernel(self.weight)))
        for branch in self.branch_of.values():
            y = y + branch(x)
        return y if self.bias is None else y + self.bias[:, None, None]

    def main_kernel(self) -> tuple[Tensor, Tensor]:
        """Kernel (out, in / groups, rows, columns) and bias (out) of the main branch in eval mode, in float64."""
        scale, shift = scale_and_shift(self.norm)
        return as_float64(_as_kernel(self.weight)) * scale[:, None, None, None], shift

    def set_main_kernel(self, weight: Tensor, bias: Tensor, x: Tensor | None = None) -> None:
        """Makes the main branch compute a given kernel and bias in eval mode.

        The BatchNorm keeps its scale, so that the kernel and what the optimizer knows about it keep their units.

        Args:
            weight: (out, in / groups, rows, columns).
            bias: (out).
            x: an input (N, in, H, W) whose statistics the BatchNorm takes; if None, it keeps those that it has.
        """
        scale, _ = scale_and_shift(self.norm)
        scale = torch.where(scale.abs() < _LEAST_SCALE, 1, scale)
        with torch.no_grad():
            self.weight.copy_((weight / scale[:, None, None, None]).view_as(self.weight))
            if x is not None:
                take_statistics_of(self.norm, self.window.slide(x, _as_kernel(self.weight)))
            self._set_scale_and_shift(scale, bias)

    def set_statistics(self, norm: nn.BatchNorm2d) -> None:
        """Gives the main BatchNorm the statistics of another one; what it computes in eval mode stays."""
        scale, shift = scale_and_shift(self.norm)
        with torch.no_grad():
            set_running_statistics(self.norm, *running_statistics(norm))
            self._set_scale_and_shift(scale, shift)

    def _set_scale_and_shift(self, scale: Tensor, shift: Tensor) -> None:
        mean, var = running_statistics(self.norm)
        self.norm.weight.copy_(scale * (var + self.norm.eps).sqrt())
        self.norm.bias.copy_(shift + scale * mean)

    def folded_kernel(self) -> tuple[Tensor, Tensor]:
        """The kernel (out, in / groups, rows, columns) and bias (out) that the block equals in eval mode, in float64.

        Both are sums over the branches, because all of them see the same window.
        """
        weight, bias = self.main_kernel()
        for branch in self.branch_of.values():
            more_weight, more_bias = branch.fold()
            weight, bias = weight + more_weight, bias + more_bias
        return weight, bias if self.bias is None else bias + as_float64(self.bias)

    def importances(self) -> dict[str, float]:
        """Mean |gamma| of each branch's last BatchNorm, relative to the main branch's, by kind."""
        main = float(as_float64(self.norm.weight).abs().mean())
        gammas = {kind: float(as_float64(branch.norm.weight).abs().mean()) for kind, branch in self.branch_of.items()}
        return {kind: gamma / main if main else float('inf') for kind, gamma in gammas.items()}

    def become_plain(self) -> Tensor | None:
        """Folds into the plain module, in place: same kernel object, same name.

        Returns:
            The bias (out) if the plain module has no place for it, else None.
        """
        weight, bias = self.folded_kernel()
        del self.norm, self.branches, self.window
        self.__class__ = self.plain  # type: ignore[assignment]  # it has the block's layout
        with torch.no_grad():
            self.weight.copy_(weight.view_as(self.weight))
            if self.bias is None:
                return bias.to(self.weight)
            self.bias.copy_(bias)
        return None

    def reparameterize(self) -> None:
        """Folds into the plain module with a bias, in place; `timm.utils.reparameterize_model` calls this."""
        bias = self.become_plain()
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=self.weight.requires_grad)


def is_block(module: nn.Module) -> TypeGuard[Block]:
    """Whether a module has branches."""
    return isinstance(module, Block)


def make_branch(block: Block, kind: str, generator: torch.Generator | None = None) -> Branch:
    """A branch for a block, on its device and in its type; it is not added yet."""
    weight = block.weight
    branch = block.kinds[kind](block.window)
    branch.draw(generator)
    return branch.to(weight.device, weight.dtype).requires_grad_(weight.requires_grad).train(block.training)


def _as_kernel(weight: Tensor) -> Tensor:
    """A weight as a convolution's kernel (out, in / groups, rows, columns): a linear layer's has one tap."""
    return weight if weight.ndim == 4 else weight[:, :, None, None]
