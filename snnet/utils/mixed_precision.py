"""Mixed precision: which operations run in a type of 16 bits."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..errors import SnnetError

_TYPES = {'bfloat16': torch.bfloat16, 'float16': torch.float16}


def autocast(on: bool, dtype: str, device: torch.device) -> AbstractContextManager[Any]:
    """Returns a context for mixed precision in the named type, or one that does nothing if `on` is false.

    Raises:
        SnnetError: the type is neither bfloat16 nor float16.
    """
    if dtype not in _TYPES:
        raise SnnetError(f"amp_dtype is one of {', '.join(_TYPES)}, not '{dtype}'")
    return torch.autocast(device.type, _TYPES[dtype]) if on else nullcontext()
