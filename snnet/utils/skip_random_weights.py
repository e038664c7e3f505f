"""Building networks whose weights are replaced at once, without drawing random ones first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWS = {
    Tensor.normal_,
    Tensor.uniform_,
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.trunc_normal_,
    nn.init.kaiming_normal_,
    nn.init.kaiming_uniform_,
}
_SHAPES_OF_DRAWS = {Tensor.erfinv_, Tensor.clamp_, Tensor.mul_, Tensor.add_}
"""What turns uniform numbers into a truncated normal distribution."""


class SkipRandomWeights(TorchFunctionMode):
    """Inside this context, random draws into a tensor set it to zero.

    A network is built several times as fast, and the global random numbers do not move. For weights that a file
    overwrites, or that nobody looks at. On the meta device, where tensors have no values, the arithmetic after a draw
    is skipped too.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS:
            tensor = args[0] if args else kwargs['tensor']  # torch.nn.init passes names
            if not tensor.is_meta:
                tensor.detach().zero_()
            return tensor
        shapes_a_draw = func in _SHAPES_OF_DRAWS and isinstance(args[0], nn.Parameter)
        if shapes_a_draw and (func is Tensor.erfinv_ or args[0].is_meta):
            return args[0]
        return func(*args, **kwargs)
