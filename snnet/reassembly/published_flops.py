"""FLOPs by the convention of the DeRy paper (that of mmcv's counter), which differs from ours (`cost`, fvcore's)."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import SEModule
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..utils.modes import eval_mode
from .network import Reassembled

_NORMS = {'batch_norm', 'layer_norm', 'group_norm', 'instance_norm'}
_ACTIVATIONS = {'relu', 'relu_', 'relu6', 'leaky_relu', 'leaky_relu_'}
_POOLS = {'max_pool2d', 'avg_pool2d', 'adaptive_avg_pool2d', 'adaptive_max_pool2d'}


@torch.no_grad()
def count_published_flops(net: Reassembled) -> int:
    """FLOPs an image as the paper counts them.

    Multiply-adds of convolutions and linear maps, 1 for each bias that a convolution adds, 2 an element of a norm's
    input, 1 an element of a ReLU's or LeakyReLU's output, 1 an element of a pooling's input. Other activations,
    attention products, additions, interpolation and the classifier are not counted. Squeeze-excite pools in ResNets
    and RegNets; MobileNet's and EfficientNet's mean is none to the published numbers.
    """
    weight = next(net.parameters())
    x = torch.zeros(1, *net.input_size, device=weight.device, dtype=weight.dtype)
    counter = _Counter()
    hooks = [m.register_forward_pre_hook(counter.squeeze) for m in net.modules() if isinstance(m, SEModule)]
    try:
        with eval_mode(net), counter:
            x = net.run_stem(x)
            for module in net.line():
                x = module(x)
            counter.classes = net.num_classes
            net.run_head(x)
    finally:
        for hook in hooks:
            hook.remove()
    return counter.total


class _Counter(TorchFunctionMode):
    """Adds up what the functions of torch that are called within a `with` block cost."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.classes: int | None = None
        """Within the head: its width, by which the classifier is known."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        name = getattr(func, '__name__', '')
        if name in ('conv1d', 'conv2d', 'conv3d', 'linear'):
            weight, bias = (*args[1:3], *(kwargs or {}).values(), None)[:2]
            if len(weight) != self.classes:
                self.total += y.numel() * (math.prod(weight.shape[1:]) + (name != 'linear' and bias is not None))
        elif name in _NORMS:
            self.total += 2 * args[0].numel()
        elif name in _ACTIVATIONS:
            self.total += y.numel()
        elif name in _POOLS or (name == 'mean' and self.classes):
            self.total += args[0].numel()
        return y

    def squeeze(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Counts the pooling of squeeze-excite, which timm computes as a mean."""
        self.total += args[0].numel()
