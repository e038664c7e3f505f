"""Gradients of a module against those of a twin, for tensors stored in every way that autograd may hand over."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Gradients = dict[str, Tensor]


class ElementaryNorm(nn.Module):
    """A BatchNorm computed by elementary operations, whose gradients torch derives step by step."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.act = getattr(norm, 'act', nn.Identity())  # timm's BatchNormAct2d has one
        self.register_buffer('running_mean', norm.running_mean)
        self.register_buffer('running_var', norm.running_var)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        each = (slice(None), None, None)
        return self.act((x - mean[each]) / (var[each] + self.eps).sqrt() * self.weight[each] + self.bias[each])


def elementary(module: nn.Module) -> nn.Module:
    """A copy of a module in which every BatchNorm is computed by elementary operations."""
    module = copy.deepcopy(module)
    for name, norm in [*module.named_modules()]:
        if isinstance(norm, nn.BatchNorm2d):
            parent, _, leaf = name.rpartition('.')
            setattr(module.get_submodule(parent), leaf, ElementaryNorm(norm).train(norm.training))
    return module


def stored(values: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same values in every memory layout that a gradient or an input may have.

    Dimensions of size 1 get strides that no contiguous tensor has: they mean nothing and must change nothing.
    """
    n = values.ndim
    orders = {'contiguous': range(n)}
    if n > 2:
        orders |= {
            'channels first to last': (0, *range(2, n), 1),
            'channels last to first': (0, n - 1, *range(1, n - 1)),
        }
        orders['mixed'] = (*range(1, n), 0)
    for name, order in orders.items():
        back = sorted(range(n), key=list(order).__getitem__)
        yield name, values.permute(*order).contiguous().permute(*back)
        if 1 in values.shape:
            dense = values.permute(*order).contiguous().permute(*back)
            for odd in (0, 1, 10_000):
                strides = [odd if size == 1 else s for size, s in zip(dense.shape, dense.stride(), strict=True)]
                yield f'{name}, strides of {odd}', dense.as_strided(dense.shape, strides)
    spaced = values.new_zeros(*values.shape, 2)
    spaced[..., 1] = values
    yield 'every second element', spaced[..., 1]


def gradients(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, grad: Tensor) -> Gradients:
    """Output and gradients with respect to the input and to every parameter."""
    x = x.detach().requires_grad_()
    module.zero_grad()
    y = run(x)
    y.backward(grad)
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return {'output': y.detach(), 'input': x.grad, **found}


def farthest(found: Gradients, wanted: Gradients) -> float:
    """The largest relative difference of two sets of gradients, in the norm of each tensor and of the largest."""
    assert found.keys() == wanted.keys()
    scale = max(float(w.norm()) for w in wanted.values()) or 1.0
    return max(float((found[name] - w).norm()) / max(float(w.norm()), 1e-3 * scale) for name, w in wanted.items())


def assert_gradients_equal(
    module: nn.Module, twin: nn.Module, x: Tensor, tolerance: float, seed: int = 0, inputs: bool = True
) -> None:
    """Compares a module with its twin for inputs and gradients stored in every way.

    Args:
        module: the one to check.
        twin: gets contiguous tensors.
        x: the values of the input.
        tolerance: relative, for the output and each gradient.
        seed: of the gradient's values.
        inputs: vary the storage of the input, too.
    """
    with torch.no_grad():
        shape = copy.deepcopy(twin)(x.contiguous()).shape
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    expanded = grad[:1].expand(shape) if len(grad) > 1 else grad
    wanted = gradients(twin, twin, x.contiguous(), grad)
    wanted_expanded = gradients(twin, twin, x.contiguous(), expanded.contiguous())
    for how, values in stored(x) if inputs else [('contiguous', x)]:
        for way, given in stored(grad):
            error = farthest(gradients(module, module, values, given), wanted)
            assert error <= tolerance, f'input {how}, gradient {way}: {error:.1e}'
        error = farthest(gradients(module, module, values, expanded), wanted_expanded)
        assert error <= tolerance, f'input {how}, gradient expanded: {error:.1e}'
