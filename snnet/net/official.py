"""Checkpoints that the authors of SN-Net released, or that their code wrote, as nets of ours."""

from __future__ import annotations

import argparse
import logging
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..anchors.anchor import Anchor, Source
from ..anchors.names import ALIASES, resolve, split_names
from ..anchors.registry import as_anchor
from ..anchors.weights import classes_held, load_model
from ..errors import NoWeights, SnnetError, reason_of
from ..stitching.space import list_stitches
from ..stitching.stitch import Stitch
from .costs import measure_costs
from .official_names import modern
from .stitchable_net import StitchableNet

_log = logging.getLogger(__name__)
_Key = tuple[int, int, int]
"""Stage, pair and number of a published stitch layer."""

WINDOWS = ((2, 1), (2, 2), (3, 3), (4, 4))
"""Width and step of the windows in the paper (section 4.3, supplement B), the released ones first."""
_ANCHOR = re.compile(r'anchors\.(\d+)\.(.+)')
_LAYER = re.compile(r'stitch_layers(?:\.(\d+))?\.(\d+)\.(\d+)\.transform\.(weight|bias)')
_TABLES = ('model', 'state_dict', 'model_ema', 'state_dict_ema')
"""Where training scripts put the weights; the trained ones before their moving average, as the papers evaluate."""
_UNCOUNTED = 'num_batches_tracked'
"""Only training with a cumulative average reads these counters, so a file need not hold them."""
_INERT: list[Any] = [argparse.Namespace, (OrderedDict, 'yacs.config.CfgNode')]
"""Settings that training scripts save beside the weights: values without behavior; the second is read as a dict."""


def load_official(
    path: str | Path,
    anchors: str | Sequence[str | Anchor] | None = None,
    *,
    window: int | None = None,
    step: int | None = None,
) -> StitchableNet:
    """Loads a checkpoint of the published implementation: a net that runs its stitches as published, in eval mode.

    The tensors are called `anchors.{i}.*` and `stitch_layers.{pair}.{l}.transform.*`, with a stage before the pair in
    staged networks; the anchors' own parameters may be called as in timm 0.6.12 or as in timm today. All of them must
    find their place, and all places must be filled.

    Args:
        path: what `torch.save` wrote (nothing but tensors and plain settings is unpickled), or a safetensors file.
        anchors: names of the anchors in the order of the file, or built anchors, which get the file's weights and
            become official; by default found by the shapes in the file, among the families of the paper.
        window, step: of the sliding window; by default the published ones that give as many stitch layers.

    Raises:
        NoWeights: the file cannot be read, or holds something else.
        SnnetError: anchors that are not known.
        CannotStitch: anchors that cannot be stitched.
    """
    path = Path(path)
    state = _read(path)
    parts, layers = _split(path, state)
    if isinstance(anchors, str):
        anchors = split_names(anchors)
    if anchors is not None and len(anchors) != len(parts):
        raise SnnetError(f'{path} holds {len(parts)} anchors, but {len(anchors)} were named')
    built = []
    for i, part in enumerate(parts):
        tensors = {new: state[old] for new, old in part.items()}
        _log.info('%s: building anchor %d of %d', path, i + 1, len(parts))
        built.append(_anchor(f'anchor {i} of {path}', tensors, None if anchors is None else anchors[i]))
    windows = WINDOWS if window is None and step is None else ((window or 2, step or 1),)
    stitches, places = _space(path, built, layers, windows)
    net = StitchableNet(built, stitches)
    names = {f'anchors.{i}.model.{new}': old for i, part in enumerate(parts) for new, old in part.items()}
    for key, layer in places.items():
        names |= {f'stitch_layers.{layer}.{leaf}': old for leaf, old in layers[key].items()}
    _fill(path, net, {new: (old, state[old]) for new, old in names.items()})
    _log.info('%s: %s with %d stitches, whose costs are counted now', path, net.title, len(stitches))
    return measure_costs(net).eval()


def _read(path: Path) -> dict[str, Tensor]:
    """The table of tensors in a file, by their published names."""
    if not path.is_file():
        raise NoWeights(f"there is no file '{path}'")
    try:
        if path.suffix == '.safetensors':
            found: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_INERT):
                found = torch.load(path, map_location='cpu', weights_only=True)
    except UnpicklingError as error:
        what = re.search(r'GLOBAL (\S+)', str(error))
        reason = f'it wants to run {what[1]}, as weights never do' if what else 'its pickle is damaged'
        raise NoWeights(f'{path} is not loaded: {reason}') from None
    except Exception as error:  # whatever a damaged or foreign file leads to
        raise NoWeights(f'{path} holds no readable weights ({reason_of(error)})') from None
    if isinstance(found, dict):
        found = next((found[name] for name in _TABLES if isinstance(found.get(name), dict)), found)
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise NoWeights(f'{path} holds no table of tensors')
    return {str(name).removeprefix('module.'): tensor for name, tensor in found.items()}


def _split(path: Path, state: Iterable[str]) -> tuple[list[dict[str, str]], dict[_Key, dict[str, str]]]:
    """Of each anchor and of each stitch layer, the name in the file of every tensor by its name today."""
    anchors: dict[int, list[str]] = {}
    layers: dict[_Key, dict[str, str]] = {}
    foreign = []
    for name in state:
        if match := _ANCHOR.fullmatch(name):
            anchors.setdefault(int(match[1]), []).append(match[2])
        elif match := _LAYER.fullmatch(name):
            key = int(match[1] or 0), int(match[2]), int(match[3])
            layers.setdefault(key, {})[match[4]] = name
        else:
            foreign.append(name)
    if foreign or not layers or sorted(anchors) != list(range(len(anchors))):
        raise NoWeights(
            f'{path} is no checkpoint of the published implementation: it holds {len(anchors)} anchors, '
            f'{len(layers)} stitch layers and {len(foreign)} other tensors'
            + (f', such as {", ".join(foreign[:3])}' if foreign else '')
        )
    parts = [modern(anchors[i]) for i in range(len(anchors))]
    return [{new: f'anchors.{i}.{old}' for new, old in part.items()} for i, part in enumerate(parts)], layers


def _anchor(which: str, tensors: Mapping[str, Tensor], asked: str | Anchor | None) -> Anchor:
    """The anchor for the tensors of a file, its weights still random."""
    if isinstance(asked, Anchor):
        asked.official = True
        return asked
    args: dict[str, Any] = {}
    if asked is None:
        asked, args = _guess(which, tensors)
    named = resolve(asked)
    args['num_classes'] = classes_held(named, tensors)
    model = load_model(named, pretrained=False, **args)
    return as_anchor(model, named.name, source=Source(named.model, args), official=True)


def _guess(which: str, tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """The network of the paper that has tensors of these names and shapes, and how it differs from timm's default."""
    held = {name: _plain(tensor.shape) for name, tensor in tensors.items() if not name.endswith(_UNCOUNTED)}
    for name in ALIASES:
        classes = classes_held(resolve(name), tensors)
        for distilled in (True, False) if 'levit' in name and classes else (None,):
            if classes and _shapes(name, classes, distilled) == held:
                return name, {} if distilled in (None, True) else {'distilled': False}
    raise NoWeights(f'{which} is none of {", ".join(ALIASES)}: name the networks, such as deit_tiny,deit_small')


@cache
def _shapes(name: str, classes: int, distilled: bool | None) -> dict[str, tuple[int, ...]]:
    """Shapes of a network's tensors, made without memory."""
    args: dict[str, Any] = {} if distilled is None else {'distilled': distilled}
    with torch.device('meta'):
        model = load_model(resolve(name), pretrained=False, num_classes=classes, **args)
    state = model.state_dict().items()
    return {key: _plain(tensor.shape) for key, tensor in state if not key.endswith(_UNCOUNTED)}


def _space(
    path: Path, anchors: Sequence[Anchor], layers: Iterable[_Key], windows: Iterable[tuple[int, int]]
) -> tuple[tuple[Stitch, ...], dict[_Key, int]]:
    """The stitches of the first window that gives the stitch layers of a file, and each one's index in our net."""
    stages = sorted({stage for stage, _, _ in layers})  # ResNets count from their first stitched stage
    held: dict[tuple[int, int], list[_Key]] = {}
    for key in sorted(layers):
        held.setdefault((stages.index(key[0]), key[1]), []).append(key)
    offered = []
    for window, step in windows:
        stitches = list_stitches(anchors, window=window, step=step, official=True)
        ours = _layers(anchors, stitches)
        if ours.keys() == held.keys() and all(len(held[seam]) in used for seam, (_, used) in ours.items()):
            return stitches, {
                key: layer
                for seam, (indices, _) in ours.items()
                for key, layer in zip(held[seam], indices, strict=False)  # the last of theirs may serve no stitch
            }
        offered.append(f'{sum(len(indices) for indices, _ in ours.values())} (window {window}, step {step})')
    names = ', '.join(anchor.name for anchor in anchors)
    raise NoWeights(
        f'{path} holds {sum(map(len, held.values()))} stitch layers, but {names} have {" or ".join(offered)}: '
        f'say with which window and step it was made'
    )


def _layers(
    anchors: Sequence[Anchor], stitches: Iterable[Stitch]
) -> dict[tuple[int, int], tuple[list[int], Sequence[int]]]:
    """Of each stitched stage and pair, the indices of our stitch layers, and how many the published net may have."""
    index = {anchor.name: i for i, anchor in enumerate(anchors)}
    found: dict[tuple[int, int], tuple[set[int], int]] = {}
    for stitch in (stitch for stitch in stitches if stitch.layers):
        front, end = stitch.legs
        assert front.stop is not None
        assert end.start is not None
        stage, depth = _stage(anchors[index[front.anchor]], front.stop - 1)
        other = _stage(anchors[index[end.anchor]], end.start)[1]
        spare = 0 if depth == other else min(depth, other)  # unpaired: one layer a block of the shallower anchor
        found.setdefault((stage, index[front.anchor]), (set(), spare))[0].update(stitch.layers)
    stages = sorted({stage for stage, _ in found})
    return {
        (stages.index(stage), pair): (sorted(layers), range(len(layers), max(len(layers), spare) + 1))
        for (stage, pair), (layers, spare) in found.items()
    }


def _stage(anchor: Anchor, module: int) -> tuple[int, int]:
    """The stage that holds a module of an anchor's line, and its number of blocks."""
    return next((i, len(span)) for i, span in enumerate(anchor.blocks()) if module in span)


def _fill(path: Path, net: StitchableNet, found: Mapping[str, tuple[str, Tensor]]) -> None:
    """Puts the tensors of a file, with their names there, into a net; every one of them, and everywhere."""
    own = net.state_dict()
    missing = sorted(name for name in own.keys() - found.keys() if not name.endswith(_UNCOUNTED))
    unknown = sorted(old for new, (old, _) in found.items() if new not in own)
    there = {new: pair for new, pair in found.items() if new in own}
    misfits = [
        f'{old} is {list(tensor.shape)} instead of {list(own[new].shape)}'
        for new, (old, tensor) in there.items()
        if _plain(tensor.shape) != _plain(own[new].shape)
    ]
    problems = (('missing', missing), ('of no use', unknown), ('of another shape', misfits))
    if told := [
        f'{len(listed)} tensors are {what}, such as {", ".join(listed[:3])}' for what, listed in problems if listed
    ]:
        raise NoWeights(f'{path} does not fit {net.title}: {"; ".join(told)}')
    with torch.no_grad():
        for new, (_, tensor) in there.items():
            own[new].copy_(tensor.reshape(own[new].shape))
    for i in range(len(net.anchors)):
        net.anchor(i).clear_caches()


def _plain(shape: torch.Size) -> tuple[int, ...]:
    """A shape without trailing ones: a linear map is a matrix here and a 1x1 convolution there."""
    sizes = list(shape)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)
