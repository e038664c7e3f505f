"""Networks of every family as anchors: `as_anchor` finds the adapter or traces, `register_adapter` adds one."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral

import torch
from timm.models.levit import Levit
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..errors import SnnetError
from ..utils.typed_json import quoted
from .adapters.levit import LevitAnchor
from .adapters.resnet import ResNetAnchor
from .adapters.swin import SwinAnchor
from .adapters.vit import ViTAnchor
from .anchor import Anchor, Source
from .tracing.traced_anchor import TracedAnchor

_ADAPTERS: dict[type[nn.Module], type[Anchor]] = {
    Levit: LevitAnchor,
    ResNet: ResNetAnchor,
    SwinTransformer: SwinAnchor,
    SwinTransformerV2: SwinAnchor,
    VisionTransformer: ViTAnchor,
}


def register_adapter(model_class: type[nn.Module], adapter: type[Anchor]) -> None:
    """Teaches `as_anchor` a family: networks of `model_class` (or a subclass) become anchors through `adapter`."""
    _ADAPTERS[model_class] = adapter


def has_adapter(model: nn.Module) -> bool:
    """Whether the class of a network or one of its bases has an adapter, so that it needs no tracing."""
    return any(c in _ADAPTERS for c in type(model).__mro__)


def as_anchor(
    model: nn.Module,
    name: str | None = None,
    *,
    input_size: tuple[int, int, int] | None = None,
    source: Source | None = None,
    official: bool = False,
) -> Anchor:
    """Wraps a network as a line that computes exactly what the network computes.

    A class without an adapter is traced: the line is found in the network's own dataflow, for the given image size.

    Args:
        model: an image classifier whose features pass through single tensors somewhere.
        name: what stitches and messages call it; timm's architecture name by default.
        input_size: channels, height and width of an image; by default those that the model was made for, or those in
            timm's pretrained config.
        source: how `timm.create_model` makes it again; by default what timm noted in the model.
        official: end stitches as the published implementation did.

    Raises:
        CannotStitch: the class has no adapter, and the network cannot be traced or has fewer than two blocks.
        SnnetError: an argument of another kind, or the input size is unknown.
    """
    if not isinstance(model, nn.Module):
        raise SnnetError(f'as_anchor takes a network, but {quoted(model)} was given (timm.create_model makes one)')
    if isinstance(model, torch.jit.ScriptModule):
        raise SnnetError('as_anchor takes a network before torch.jit.script, which keeps no modules that can be cut')
    if hasattr(model, '_orig_mod'):
        raise SnnetError(
            'as_anchor takes a network before torch.compile, which keeps it as _orig_mod '
            '(snnet.compile_blocks(net) compiles the blocks of a net)'
        )
    if name is not None and not isinstance(name, str):
        raise SnnetError(f'the name of an anchor is a text, not {name!r}')
    config = getattr(model, 'pretrained_cfg', None) or {}
    size = _image_size(model) if input_size is None else _checked_size(input_size)
    if size is None:
        raise SnnetError(f'{type(model).__name__} does not say its input size: pass input_size=(3, height, width)')
    architecture = config.get('architecture')
    if source is None and architecture and hasattr(model, '_model_args'):
        tag = config.get('tag')
        source = Source(f'{architecture}.{tag}' if tag else architecture, dict(getattr(model, '_model_args', {})))
    name = name or architecture or type(model).__name__
    adapter = next((_ADAPTERS[c] for c in type(model).__mro__ if c in _ADAPTERS), TracedAnchor)
    return adapter(model, name, (size[0], size[1], size[2]), source, official)


def _checked_size(size: Iterable[int]) -> tuple[int, ...]:
    """Channels, height and width.

    Raises:
        SnnetError: something else.
    """
    wrong = SnnetError(f'input_size is (channels, height, width), such as (3, 224, 224), not {size!r}')
    if not isinstance(size, Iterable):
        raise wrong
    numbers = tuple(size)
    if len(numbers) != 3 or not all(isinstance(n, Integral) and not isinstance(n, bool) and n > 0 for n in numbers):
        raise wrong
    return tuple(int(n) for n in numbers)


def image_channels(model: nn.Module) -> int:
    """Channels of the images that a network takes, as its first convolution says; 3 where there is none."""
    noted = getattr(model, '_model_args', {}).get('in_chans')
    if noted is not None:
        return int(noted)
    config = getattr(model, 'pretrained_cfg', None) or {}
    first = config.get('first_conv')
    modules = dict(model.named_modules())
    named = [modules[name] for name in ((first,) if isinstance(first, str) else first or ()) if name in modules]
    for module in (*named, *modules.values()):
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    size = config.get('input_size')
    return int(size[0]) if size else 3


def _image_size(model: nn.Module) -> tuple[int, int, int] | None:
    """The image size that a model was made for, where timm notes it in the model or its pretrained config."""
    config = getattr(model, 'pretrained_cfg', None) or {}
    size = getattr(model, '_model_args', {}).get('img_size') or getattr(
        getattr(model, 'patch_embed', None), 'img_size', None
    )
    if size is None:
        size = tuple(config['input_size'])[1:] if config.get('input_size') else None
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return image_channels(model), height, width
