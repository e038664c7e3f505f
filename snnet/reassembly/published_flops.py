"""Counts FLOPs as the DeRy paper does (with mmcv's counter), which differs from `part_flops` (fvcore's way)."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import SEModule
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..utils.eval_mode import eval_mode
from .reassembled import Reassembled

_MAPS = {'linear', 'conv1d', 'conv2d', 'conv3d', 'conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d'}
_NORMS = {'batch_norm', 'layer_norm', 'group_norm', 'instance_norm'}
_ACTIVATIONS = {'relu', 'relu_', 'relu6', 'leaky_relu', 'leaky_relu_'}
_POOLS = {'max_pool2d', 'avg_pool2d', 'adaptive_avg_pool2d', 'adaptive_max_pool2d'}


@torch.no_grad()
def count_published_flops(net: Reassembled) -> int:
    """FLOPs per image as the paper counts them.

    Counted are multiply-adds of convolutions and linear maps, 1 for each bias that a convolution adds, 2 per element of
    a norm's input, 1 per element of a ReLU's or LeakyReLU's output, and 1 per element of a pooling's input. Other
    activations, attention products, additions, interpolation and the classifier are not counted. The squeeze of ResNets
    and RegNets counts as a pooling, the mean in MobileNet and EfficientNet does not.
    """
    weight = next(net.parameters())
    x = torch.zeros(1, *net.input_size, device=weight.device, dtype=weight.dtype)
    counter = PublishedCounter()
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


class PublishedCounter(TorchFunctionMode):
    """Adds up the cost of the torch functions called within a `with` block.

    Attributes:
        total: FLOPs so far.
        classes: width of the classifier, which is not counted, once the head runs; None before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.classes: int | None = None  # in the head: its width, by which the classifier is recognized

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        y = func(*args, **kwargs)
        name = getattr(func, '__name__', '')
        x = args[0] if args else kwargs.get('input')
        if name in _MAPS:
            weight = args[1] if len(args) > 1 else kwargs['weight']
            bias = args[2] if len(args) > 2 else kwargs.get('bias')
            if len(weight) != self.classes:
                self.total += _multiply_adds(name, x, weight, y)
                self.total += y.numel() if bias is not None and name != 'linear' else 0
        elif name in _NORMS:
            self.total += 2 * x.numel()
        elif name in _ACTIVATIONS:
            self.total += y.numel()
        elif name in _POOLS or (name == 'mean' and self.classes):
            self.total += x.numel()
        return y

    def squeeze(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Counts the pooling of squeeze-excite, which timm computes as a mean."""
        self.total += args[0].numel()


def _multiply_adds(name: str, x: Tensor, weight: Tensor, y: Tensor) -> int:
    """FLOPs of a convolution or linear map; weight (out, in / groups, ...), transposed (in, out / groups, ...)."""
    cells = x if name.startswith('conv_transpose') else y
    return cells.numel() * math.prod(weight.shape[1:])
