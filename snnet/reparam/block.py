"""A convolution with branches: the same module under another class, so that its name, kernel and hooks stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard, cast

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from ..stitching.layout import to_layout
from ..stitching.stitch_layer import StitchLayer
from ..utils.batch_norm import SafeBatchNorm2d
from .branches import (
    CONVOLUTION,
    Branch,
    affine,
    exact,
    settle,
    statistics,
    statistics_of,
)
from .kernel_window import Window
from .stitch_branches import STITCH

_LEAST_GAIN = 1e-2
"""A main BatchNorm that scales by less takes up natural scale when it is set anew: dividing by it would lose digits."""


class Block(nn.Module):
    """The sum of a main branch (the module's own kernel and a BatchNorm) and of branches beside it, plus its own bias.

    Mixed into the class of the plain module. Everything that reads the plain module's attributes goes on; what reads
    its weight finds the main branch's kernel.

    Attributes:
        norm: the main branch's BatchNorm.
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
    window: Window

    @property
    def beside(self) -> dict[str, Branch]:
        """The branches by kind."""
        return cast('dict[str, Branch]', dict(self.branches.items()))

    def total(self, x: Tensor) -> Tensor:
        """The sum of all branches, (N, in, H, W) to (N, out, H', W')."""
        y = self.norm(self.window.slide(x, _kernel(self.weight)))
        for branch in self.beside.values():
            y = y + branch(x)
        return y if self.bias is None else y + self.bias[:, None, None]

    def main(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the main branch in eval mode, in float64."""
        scale, shift = affine(self.norm)
        return exact(_kernel(self.weight)) * scale[:, None, None, None], shift

    def set_main(self, weight: Tensor, bias: Tensor, x: Tensor | None = None) -> None:
        """Lets the main branch be this kernel and bias in eval mode, whatever its BatchNorm's statistics are.

        The BatchNorm keeps what it scales by, so that kernel and optimizer go on in their units.

        Args:
            weight: (out, in / groups, rows, columns).
            bias: (out).
            x: an input whose statistics the BatchNorm takes; it keeps those it has where None.
        """
        gain, _ = affine(self.norm)
        gain = torch.where(gain.abs() < _LEAST_GAIN, 1, gain)
        with torch.no_grad():
            self.weight.copy_((weight / gain[:, None, None, None]).view_as(self.weight))
            if x is not None:
                settle(self.norm, self.window.slide(x, _kernel(self.weight)))
            self._set_affine(gain, bias)

    def set_statistics(self, norm: nn.BatchNorm2d) -> None:
        """Gives the main BatchNorm the statistics of another; what it computes in eval mode stays."""
        scale, shift = affine(self.norm)
        with torch.no_grad():
            statistics_of(self.norm, *statistics(norm))
            self._set_affine(scale, shift)

    def _set_affine(self, scale: Tensor, shift: Tensor) -> None:
        mean, var = statistics(self.norm)
        self.norm.weight.copy_(scale * (var + self.norm.eps).sqrt())
        self.norm.bias.copy_(shift + scale * mean)

    def fold(self) -> tuple[Tensor, Tensor]:
        """The one kernel and bias that the block is in eval mode, in float64."""
        weight, bias = self.main()
        for branch in self.beside.values():
            more = branch.fold()
            weight, bias = weight + more[0], bias + more[1]
        return weight, bias if self.bias is None else bias + exact(self.bias)

    def importances(self) -> dict[str, float]:
        """Mean |gamma| of each branch's last BatchNorm, relative to the main branch's."""
        main = float(exact(self.norm.weight).abs().mean())
        gammas = {kind: float(exact(branch.norm.weight).abs().mean()) for kind, branch in self.beside.items()}
        return {kind: gamma / main if main else float('inf') for kind, gamma in gammas.items()}

    def dissolve(self) -> Tensor | None:
        """Folds into the plain module, in place: same kernel object, same name.

        Returns:
            The bias (out) that the plain module has no place for; None where it has one.
        """
        weight, bias = self.fold()
        del self.norm, self.branches, self.window
        self.__class__ = self.plain  # type: ignore[assignment]  # it has the block's layout
        with torch.no_grad():
            self.weight.copy_(weight.view_as(self.weight))
            if self.bias is None:
                return bias.to(self.weight)
            self.bias.copy_(bias)
        return None

    def reparameterize(self) -> None:
        """Folds into the plain module with a bias, in place; `timm.utils.reparameterize_model` finds this."""
        bias = self.dissolve()
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=self.weight.requires_grad)


class RepConv2d(Block, nn.Conv2d):
    """A convolution with branches."""

    plain = nn.Conv2d
    kinds = CONVOLUTION

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H', W')."""
        return self.total(x)


class RepConv2dSame(Block, Conv2dSame):
    """A convolution whose padding follows the input's size, as TensorFlow's do, with branches."""

    plain = Conv2dSame
    kinds = CONVOLUTION

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H', W')."""
        return self.total(x)


class RepStitchLayer(Block, StitchLayer):
    """A stitch layer with branches: maps are what its branches see, whatever the layouts of front and end."""

    plain = StitchLayer
    kinds = STITCH

    def forward(self, x: Tensor) -> Tensor:
        """Features at the front's boundary to features at the end's boundary."""
        y = self.total(as_map(self, x))
        if self.front.layout == 'NLC':
            y = y.squeeze(2).transpose(1, 2)
        elif self.front.layout == 'NHWC':
            y = y.permute(0, 2, 3, 1)
        return to_layout(y, self.front, self.end.layout)


GROWN: dict[type[nn.Module], type[Block]] = {block.plain: block for block in (RepConv2d, RepConv2dSame, RepStitchLayer)}
"""What a plain module becomes."""


def is_block(module: nn.Module) -> TypeGuard[Block]:
    """Whether a module has branches."""
    return isinstance(module, Block)


def window_of(module: nn.Module) -> Window:
    """The geometry of a convolution, plain or not; a linear layer has one tap."""
    if isinstance(module, nn.Linear):
        return Window((module.in_features, module.out_features))
    assert isinstance(module, nn.Conv2d)
    return Window.of(module, follows_input='Same' in type(module).__name__)  # as timm calls them


def kinds_of(module: nn.Module) -> Mapping[str, type[Branch]]:
    """The branches that a module may have, by kind."""
    return (type(module) if is_block(module) else GROWN[type(module)]).kinds


def become_block(module: nn.Module) -> Block:
    """Turns a plain module into a block without branches, in place; in eval mode its output stays the same."""
    kind = GROWN[type(module)]
    window, weight = window_of(module), module.get_parameter('weight')
    module.__class__ = kind  # a block has its plain class's layout
    assert is_block(module)
    norm = SafeBatchNorm2d(len(weight), device=weight.device, dtype=weight.dtype)
    module.norm, module.branches, module.window = norm, nn.ModuleDict(), window
    with torch.no_grad():
        norm.weight.fill_((1 + norm.eps) ** 0.5)  # of a BatchNorm with variance 1 this is exactly what eps takes away
    norm.requires_grad_(weight.requires_grad).train(module.training)
    return module


def make_branch(block: Block, kind: str, generator: torch.Generator | None = None) -> Branch:
    """A branch for a block, on its device and in its type; it is not added yet."""
    weight = block.weight
    branch = block.kinds[kind](block.window)
    branch.draw(generator)
    return branch.to(weight.device, weight.dtype).requires_grad_(weight.requires_grad).train(block.training)


def as_map(module: nn.Module, x: Tensor) -> Tensor:
    """The input of a convolution or a stitch layer as (N, channels, rows, columns); tokens are one row."""
    layout = module.front.layout if isinstance(module, StitchLayer) else 'NCHW'
    if layout == 'NLC':
        return x.transpose(1, 2).unsqueeze(2)
    return x.permute(0, 3, 1, 2) if layout == 'NHWC' else x


def _kernel(weight: Tensor) -> Tensor:
    """A weight as a convolution's kernel: a linear layer's has one tap."""
    return weight if weight.ndim == 4 else weight[:, :, None, None]
