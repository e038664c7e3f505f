"""What modules have in common that take equal time and can share compiled graphs."""

from __future__ import annotations

import itertools

from torch import nn

Signature = tuple[type[nn.Module], tuple[tuple[str, tuple[int, ...]], ...]]


def signature_of(module: nn.Module) -> Signature:
    """Equal for modules of one class with tensors of the same names and shapes."""
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    return type(module), tuple((name, tuple(tensor.shape)) for name, tensor in tensors)
