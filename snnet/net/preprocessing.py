"""How the images of a net are prepared: resized, cropped and normalized."""

from __future__ import annotations

from typing import Any

from timm.data import resolve_data_config

from .joined_anchors import JoinedAnchors

_WORDS = ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')


def preprocessing(net: JoinedAnchors) -> dict[str, Any]:
    """Size, resizing, cropping and normalization as the net keeps them, or else as the first anchor's; timm's words."""
    anchor = net.anchor(0)
    known: dict[str, Any] = {'input_size': net.input_size, **net.preprocessing}
    if anchor.normalization is not None:
        known |= {'mean': anchor.normalization.mean, 'std': anchor.normalization.std}
    config = resolve_data_config(known, model=anchor.model, verbose=False)
    return {name: config[name] for name in _WORDS}


def timm_config(net: JoinedAnchors) -> dict[str, Any]:
    """What timm's `resolve_model_data_config` and its scripts read: a pretrained config without weights."""
    first = net.anchor(0)
    config = getattr(first.model, 'pretrained_cfg', None) or {}
    classifier, convolution = config.get('classifier'), config.get('first_conv')
    found = {
        'architecture': 'snnet',
        'num_classes': net.num_classes,
        'first_conv': _prefixed('anchors.0.model.', convolution),
        'classifier': _prefixed(f'anchors.{len(net.anchors) - 1}.model.', classifier),
        'fixed_input_size': True,
        **preprocessing(net),
    }
    if net.class_names:
        found['label_names'] = list(net.class_names)
    return found


def timm_row(net: JoinedAnchors) -> dict[str, Any]:
    """What the config.json of a net says for others of how images are prepared, as JSON gives it back."""
    values = {**preprocessing(net), 'num_classes': net.num_classes}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _prefixed(prefix: str, names: Any) -> Any:
    if isinstance(names, str):
        return prefix + names
    return tuple(prefix + name for name in names or ())
