"""How far two ways of computing the same may differ: what follows from the type and from the length of the sums."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def rounding(dtype: torch.dtype, terms: int) -> float:
    """Bound on the difference of two sums of the same `terms` numbers in another order, relative to the largest sum.

    Each of the two is off by at most terms * eps / 2 of the sum of magnitudes (Higham, Accuracy and Stability of
    Numerical Algorithms, section 4.2). The bound is so far above the errors that really occur (they grow with the root
    of `terms`) that it also covers sums whose magnitudes partly cancel.
    """
    return terms * torch.finfo(dtype).eps


def assert_close_up_to_rounding(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], terms: int) -> None:
    """Compares tensors by name; each may be off by the rounding of its largest element."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        bound = rounding(value.dtype, terms) * float(value.abs().max())
        difference = float((actual[name] - value).abs().max())
        assert difference <= bound, f'{name} differs by {difference:.3g}, rounding explains {bound:.3g}'
