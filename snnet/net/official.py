"""Checkpoints that the authors of SN-Net and SN-Netv2 released, or that their code wrote, as nets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..anchors.anchor import Anchor, Source
from ..anchors.class_names import imagenet_names
from ..anchors.names import ALIASES, resolve, split_names
from ..anchors.new_head import mark_new_head
from ..anchors.registry import as_anchor
from ..anchors.weights import classes_held, load_model
from ..errors import NoWeights, SnnetError
from .measure_costs import measure_costs
from .official_file import OfficialFile, read_official
from .official_space import is_snnetv2, snnetv2_space, window_space
from .stitchable_net import StitchableNet

_log = logging.getLogger(__name__)
KNOWN = (*ALIASES, *(f'deit3_{size}_patch16_224' for size in ('small', 'base', 'large')))
"""The networks of the papers, which are recognized by their shapes."""
PREPROCESSING: dict[str, Any] = {'crop_pct': 0.875, 'interpolation': 'bicubic'}
"""How the papers evaluate: resize to 256 pixels, then crop the central 224."""
_UNCOUNTED = 'num_batches_tracked'
"""Only training with a cumulative average reads these counters, so a file need not hold them."""


def load_official(
    path: str | Path,
    anchors: str | Sequence[str | Anchor] | None = None,
    *,
    window: int | None = None,
    step: int | None = None,
    nearest: bool | None = None,
    num_classes: int | None = None,
) -> StitchableNet:
    """Loads a checkpoint of the published implementation: a net that runs its stitches as published, in eval mode.

    The tensors are called `anchors.{i}.*` and `stitch_layers.{pair}.{l}.transform.*`, with a stage before the pair in
    staged networks. The anchors' own parameters may be called as in timm 0.6.12 or as in timm today. Every tensor in
    the file must have a place in the net, and every place must be filled.

    A file of SN-Netv2 (two networks, stitch layers in both directions) is recognized by its stitch layers, whose
    low-rank updates are merged into their weights. Its stitches apply the final norm, and their FLOPs count it: the
    published ones of SN-Net (not SN-Netv2) lack 5 multiply-adds per token and channel, because it leaves that norm out.

    Args:
        path: what `torch.save` wrote (nothing but tensors and plain settings is unpickled), or a safetensors file.
        anchors: names of the anchors in the order of the file, or built anchors, which get the file's weights and
            become official; by default the papers' networks with the shapes in the file.
        window: blocks in the sliding window; by default what gives as many stitch layers, if only one space does.
        step: blocks that the window advances by; by default likewise.
        nearest: whether only neighbors in cost are stitched; by default what gives as many pairs of anchors.
        num_classes: width of the logits; by default that of the file. Another one gives every anchor a new classifier
            with random weights.

    Raises:
        NoWeights: the file cannot be read, holds something else, or fits several spaces, which the message lists.
        SnnetError: anchors that are not known.
        CannotStitch: anchors that cannot be stitched.
    """
    file = read_official(Path(path))
    if isinstance(anchors, str):
        anchors = split_names(anchors)
    if anchors is not None and len(anchors) != len(file.anchors):
        raise SnnetError(f'{path} holds {len(file.anchors)} anchors, but {len(anchors)} were named')
    built = []
    for i in range(len(file.anchors)):
        _log.info('%s: building anchor %d of %d', path, i + 1, len(file.anchors))
        built.append(_build_anchor(file, i, None if anchors is None else anchors[i]))
    if is_snnetv2(file, built):
        space = snnetv2_space(file, built)
        for anchor in built:
            anchor.official = False  # SN-Netv2 applies the final norm behind stitch layers, too
    else:
        space = window_space(file, built, window, step, nearest)
    net = StitchableNet(built, space.stitches)
    names = {f'anchors.{i}.model.{new}': old for i, part in enumerate(file.anchors) for new, old in part.items()}
    for key, layer in space.layers.items():
        names |= {f'stitch_layers.{layer}.{leaf}': old for leaf, old in file.layers[key].items()}
    _fill(file.path, net, {new: (old, file.state[old]) for new, old in names.items()})
    net.preprocessing = dict(PREPROCESSING)
    net.class_names = imagenet_names(net.num_classes)
    if num_classes is not None and num_classes != net.num_classes:
        _replace_classifiers(net, num_classes)
    _log.info('%s: %s with %d stitches, whose costs are counted now', path, net.title, len(net.stitches))
    return measure_costs(net).eval()


def _build_anchor(file: OfficialFile, index: int, asked: str | Anchor | None) -> Anchor:
    """The anchor for the tensors of a file, its weights still random."""
    if isinstance(asked, Anchor):
        asked.official = True
        return asked
    tensors = file.tensors(index)
    args: dict[str, Any] = {}
    if asked is None:
        asked, args = _recognize(f'anchor {index} of {file.path}', tensors)
    named = resolve(asked)
    args['num_classes'] = classes_held(named, tensors)
    model = load_model(named, pretrained=False, **args)
    return as_anchor(model, named.name, source=Source(named.model, args), official=True)


def _recognize(which: str, tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """The network of the papers that has tensors of these names and shapes, and how it differs from timm's default.

    Raises:
        NoWeights: none has, or several have.
    """
    held = {name: _plain(tensor.shape) for name, tensor in tensors.items() if not name.endswith(_UNCOUNTED)}
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in KNOWN:
        classes = classes_held(resolve(name), tensors)
        for distilled in (True, False) if 'levit' in name and classes else (None,):
            if classes and _shapes(name, classes, distilled) == held:
                args = {} if distilled in (None, True) else {'distilled': False}
                found.setdefault(resolve(name).model.partition('.')[0], (name, args))
    if not found:
        raise NoWeights(f'{which} is none of {", ".join(KNOWN)}: name the networks, such as deit_tiny,deit_small')
    names = [name for name, _ in found.values()]
    if len({_family(name) for name in names}) > 1:
        raise NoWeights(f'{which} may be any of {", ".join(names)}, which have the same tensors: name the networks')
    return next(iter(found.values()))


def _family(name: str) -> str:
    """DeiT is a ViT with another training: the same tensors, and the same function."""
    return 'vit' if name.startswith(('deit_', 'vit_')) else name


@cache
def _shapes(name: str, classes: int, distilled: bool | None) -> dict[str, tuple[int, ...]]:
    """Shapes of a network's tensors, made without memory."""
    args: dict[str, Any] = {} if distilled is None else {'distilled': distilled}
    with torch.device('meta'):
        model = load_model(resolve(name), pretrained=False, num_classes=classes, **args)
    state = model.state_dict().items()
    return {key: _plain(tensor.shape) for key, tensor in state if not key.endswith(_UNCOUNTED)}


def _fill(path: Path, net: StitchableNet, found: Mapping[str, tuple[str, Tensor]]) -> None:
    """Puts the tensors of a file into a net; each of them must have a place, and every place must be filled."""
    own = net.state_dict()
    missing = sorted(name for name in own.keys() - found.keys() if not name.endswith(_UNCOUNTED))
    unknown = sorted(old for new, (old, _) in found.items() if new not in own)
    there = {new: pair for new, pair in found.items() if new in own}
    misfits = [
        f'{old} is {list(tensor.shape)} instead of {list(own[new].shape)}'
        for new, (old, tensor) in there.items()
        if _plain(tensor.shape) != _plain(own[new].shape)
    ]
    problems = (('missing', missing), ('not part of the net', unknown), ('of another shape', misfits))
    parts = [
        f'{len(listed)} tensors are {what}, such as {", ".join(listed[:3])}' for what, listed in problems if listed
    ]
    if parts:
        raise NoWeights(f'{path} does not fit {net.title}: {"; ".join(parts)}')
    with torch.no_grad():
        for new, (_, tensor) in there.items():
            own[new].copy_(tensor.reshape(own[new].shape))
    for i in range(len(net.anchors)):
        net.anchor(i).clear_caches()


def _replace_classifiers(net: StitchableNet, num_classes: int) -> None:
    """Gives every anchor a classifier of another width, with random weights."""
    _log.warning(
        '%s: the classifiers for %d classes are replaced by new ones for %d, with random weights',
        net.title, net.num_classes, num_classes,
    )  # fmt: skip
    for anchor in map(net.anchor, range(len(net.anchors))):
        anchor.model.reset_classifier(num_classes)
        mark_new_head(anchor.model)
        if anchor.source is not None:
            anchor.source = replace(anchor.source, args={**anchor.source.args, 'num_classes': num_classes})
        anchor.clear_caches()


def _plain(shape: torch.Size) -> tuple[int, ...]:
    """A shape without trailing ones: a linear map is a matrix here and a 1x1 convolution there."""
    sizes = list(shape)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)
