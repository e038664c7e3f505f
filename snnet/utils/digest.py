"""A digest of tensors, to see whether weights are still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def digest_of_tensors(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], about: str = '') -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, wherever they are, in their order.

    Args:
        tensors: by name.
        about: a text that is digested first.

    Returns:
        The digest in hexadecimal.
    """
    digest = hashlib.sha256(about.encode())
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        if type(tensor) not in (Tensor, nn.Parameter):  # of torchao and the like, which have no plain bytes
            digest.update(repr(type(tensor)).encode())
        elif not tensor.is_meta:
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
