"""The usual way to a net: names in, a stitchable network with its costs out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real

import numpy as np
from torch import nn

from ..anchors.anchor import Anchor
from ..anchors.flops import PartFlops, part_flops
from ..anchors.names import is_net_folder, split_names, without_file
from ..anchors.new_head import mark_new_head
from ..anchors.weights import default_size, load_anchor
from ..errors import CannotStitch, SnnetError
from ..stitching.check_anchors import check_anchors
from ..stitching.space import list_stitches
from ..utils.typed_json import quoted
from ..utils.whole_number import whole_number
from .measure_costs import measure_costs
from .stitchable_net import StitchableNet

_log = logging.getLogger(__name__)


def create_stitchable_net(
    anchors: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Anchor],
    *,
    pretrained: bool,
    num_classes: int | None = None,
    img_size: int | None = None,
    window: int = 2,
    step: int = 1,
    nearest: bool = True,
    direction: str = 'fast_to_slow',
    stage_ends: bool = False,
    official: bool = False,
    drop_path_rate: float | None = None,
) -> StitchableNet:
    """Builds a net from the names of its anchors, with untrained stitch layers and the costs of every stitch.

    Args:
        anchors: names, in a list or separated by commas: aliases (`deit_tiny`), timm names with or without tag,
            NAME=FILE for local weights, hf-hub:OWNER/NAME, local-dir:FOLDER, or FOLDER for a single network that was
            saved, such as a reassembled one; or anchors made by `as_anchor`. Any order: they are sorted by cost.
        pretrained: load weights (files and folders always do).
        num_classes: width of the logits; what the weights hold by default.
        img_size: height and width of an image in pixels; by default the largest that the networks were trained at.
        window, step: width and advance of the sliding window over equally deep stages.
        nearest: stitch only anchors next to each other in cost.
        direction: 'fast_to_slow', 'slow_to_fast', 'two_way', or 'snnetv2' for two networks (see `list_stitches`).
        stage_ends: also join anchors where their stages end, not only within stages.
        official: follow the published implementation where it deviates (docs/exactness.md).
        drop_path_rate: stochastic depth while training.

    Raises:
        SnnetError: with a sentence that says what was asked and what is possible.
    """
    named = _named(anchors)
    _check_options({'nearest': nearest, 'stage_ends': stage_ends}, drop_path_rate)
    drop_path_rate = None if drop_path_rate is None else float(drop_path_rate)
    num_classes = None if num_classes is None else whole_number('num_classes', num_classes)
    img_size = _common_size(named) if img_size is None else whole_number('img_size', img_size, least=1)
    for one in named:
        if isinstance(one, Anchor):
            _check_built_already(one, num_classes, img_size, drop_path_rate)
    built = [
        _built(one, pretrained, num_classes, img_size, drop_path_rate, official) if isinstance(one, str) else one
        for one in named
    ]
    check_anchors(built)
    _check_weights(built)
    if num_classes is None and built[0].num_classes == 0:
        _log.warning(
            '%s: no classifier among the weights, so this is a net of embeddings '
            '(num_classes= or --num-classes gives it new classifiers, num_classes=0 asks for embeddings)',
            ', '.join(anchor.name for anchor in built),
        )
    parts = {anchor.name: part_flops(anchor) for anchor in built}
    ordered = _sorted_by_cost(built, parts)
    stitches = list_stitches(
        ordered, window=window, step=step, nearest=nearest, direction=direction, stage_ends=stage_ends,
        official=official,
    )  # fmt: skip
    return measure_costs(StitchableNet(ordered, stitches), parts)


def _check_options(switches: dict[str, object], drop_path_rate: object) -> None:
    """Refuses switches that are not bools, and a rate out of range."""
    for name, value in switches.items():
        if not isinstance(value, bool | np.bool_):
            raise SnnetError(f'{name} is True or False, not {value!r}')
    if drop_path_rate is not None and not (isinstance(drop_path_rate, Real) and 0 <= float(drop_path_rate) < 1):
        raise SnnetError(f'drop_path_rate is a share of at least 0 and below 1, not {drop_path_rate!r}')


def _check_built_already(
    anchor: Anchor, num_classes: int | None, img_size: int | None, drop_path_rate: float | None
) -> None:
    """Refuses options that would change an anchor that is built already, because they cannot."""
    if num_classes is not None and num_classes != anchor.num_classes:
        raise SnnetError(
            f'{anchor.name} was built with {anchor.num_classes} classes, which num_classes={num_classes} cannot '
            f'change: give its model that many before as_anchor, or call net.reset_classifier({num_classes})'
        )
    if img_size is not None and anchor.input_size[1:] != (img_size, img_size):
        size = 'x'.join(map(str, anchor.input_size[1:]))
        raise CannotStitch(
            f'{anchor.name} was built for images of {size}, which img_size={img_size} cannot change: '
            f'as_anchor takes input_size=({anchor.input_size[0]}, {img_size}, {img_size})'
        )
    if drop_path_rate is not None:
        _log.warning('%s keeps the stochastic depth that it was built with, not %g', anchor.name, drop_path_rate)


def _check_weights(anchors: Sequence[Anchor]) -> None:
    """Refuses networks on torch's meta device."""
    for anchor in anchors:
        name = next((name for name, tensor in anchor.model.state_dict().items() if tensor.is_meta), None)
        if name is not None:
            raise SnnetError(
                f"{anchor.name} holds no numbers: {name} is on torch's meta device (model.to_empty(device='cpu') makes "
                f'room for weights, load_state_dict fills it)'
            )


def _named(anchors: object) -> list[str | Anchor]:
    """The anchors that a user gives, each by its name or as it is.

    Raises:
        SnnetError: something else.
    """
    if isinstance(anchors, str):
        return [*split_names(anchors)]
    given = [anchors] if isinstance(anchors, os.PathLike) or not isinstance(anchors, Iterable) else list(anchors)
    found: list[str | Anchor] = []
    for one in given:
        if isinstance(one, nn.Module) and not isinstance(one, Anchor):
            raise SnnetError(
                f'an anchor is a name or made by snnet.as_anchor, so make one of this {type(one).__name__}'
            )
        if not isinstance(one, str | os.PathLike | Anchor):
            raise SnnetError(f'an anchor is a name or made by snnet.as_anchor, but {quoted(one)} was given')
        found.append(one if isinstance(one, Anchor) else os.fsdecode(one))
    return found


def _built(
    name: str,
    pretrained: bool,
    num_classes: int | None,
    img_size: int | None,
    drop_path_rate: float | None,
    official: bool,
) -> Anchor:
    if is_net_folder(name):
        return load_folder(name, num_classes=num_classes, img_size=img_size, drop_path_rate=drop_path_rate)
    return load_anchor(
        name,
        pretrained=pretrained,
        num_classes=num_classes,
        img_size=img_size,
        drop_path_rate=drop_path_rate,
        official=official,
    )


def _common_size(named: Sequence[str | Anchor]) -> int | None:
    """The largest of the sizes that networks were trained at, where they differ and all are named; else None."""
    sizes: dict[str, tuple[int, int]] = {}
    for one in named:
        if isinstance(one, Anchor) or is_net_folder(one):
            return None
        size = default_size(one)
        if size is None:
            return None
        sizes[one] = size[1], size[2]
    largest = max(sizes.values(), default=(0, 0))
    if len(set(sizes.values())) < 2 or any(height != width for height, width in sizes.values()):
        return None
    listed = ', '.join(f'{name} at {height}' for name, (height, _) in sizes.items())
    _log.warning(
        'the networks were trained at different image sizes (%s): all are built for the largest, %d '
        '(img_size= or --img-size chooses another)',
        listed, largest[0],
    )  # fmt: skip
    return largest[0]


def load_zoo(
    names: str | Sequence[str], *, pretrained: bool, num_classes: int | None = None, img_size: int | None = None
) -> dict[str, Anchor]:
    """Networks by their names. Where several checkpoints are of one architecture, each is called NAME=FILE in full.

    Args:
        names: in a list or separated by commas: NAME, NAME=FILE or FOLDER as for `create_stitchable_net`.
        pretrained: load weights (files and folders always do).
        num_classes: width of the logits; what the weights hold by default. A file without a classifier then gives a
            network of 0 classes, which can be cut, but not end a new network with its own head.
        img_size: height and width of an image in pixels; by default what the networks were trained at, and the
            largest of these sizes where they differ.

    Raises:
        SnnetError: a name that comes twice, or with a sentence that says what was asked and what is possible.
    """
    names = split_names(names)
    if not names:
        raise SnnetError('a zoo needs at least one network, none was named (--zoo)')
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice:
        raise SnnetError(f"'{twice}' is named twice: a zoo holds each network once")
    if img_size is None:
        img_size = _common_size(names)
    short = [without_file(name) for name in names]
    zoo = {}
    for name, own in zip(names, short, strict=True):
        if is_net_folder(name):
            anchor = load_folder(name, num_classes=num_classes, img_size=img_size)
        else:
            anchor = load_anchor(name, pretrained=pretrained, num_classes=num_classes, img_size=img_size, headless=True)
        anchor.name = own if short.count(own) == 1 else name
        zoo[anchor.name] = anchor
    return zoo


def load_folder(
    folder: str, *, num_classes: int | None = None, img_size: int | None = None, drop_path_rate: float | None = None
) -> Anchor:
    """The only anchor of a net that was saved, such as a reassembled network, with its weights.

    Args:
        folder: where; messages and stitches call the anchor so.
        num_classes: width of the logits; another number than was saved makes a new classifier.
        img_size: height and width of an image in pixels, which must be those it was made for.
        drop_path_rate: ignored, with a warning, because the network keeps the rate that it was saved with.

    Raises:
        SnnetError: a net of several anchors, or another error of `StitchableNet.from_pretrained`.
        CannotStitch: another image size.
    """
    net = StitchableNet.from_pretrained(folder)
    if len(net.anchors) > 1:
        raise SnnetError(
            f"'{folder}' holds a whole net of {len(net.anchors)} anchors ({net.title}), but an anchor is a single "
            f'network: name those networks instead, each with its weights as NAME=FILE'
        )
    anchor = net.anchor(0) if net.statistics is None else next(iter(net.extract(0).anchors))
    assert isinstance(anchor, Anchor)
    if img_size is not None and anchor.input_size[1:] != (img_size, img_size):
        size = 'x'.join(map(str, anchor.input_size[1:]))
        raise CannotStitch(f'{folder} was made for images of {size}, not {img_size}x{img_size}')
    if drop_path_rate is not None:
        _log.warning('%s keeps the stochastic depth that it was saved with, not %g', folder, drop_path_rate)
    source = anchor.source
    if num_classes is not None and num_classes != anchor.num_classes:
        _log.warning(
            '%s has %d classes, so the classifier for %d classes is new', folder, anchor.num_classes, num_classes
        )
        anchor.model.reset_classifier(num_classes)
        mark_new_head(anchor.model)
        source = replace(source, args={**source.args, 'num_classes': num_classes}) if source else None
    renamed = type(anchor)(anchor.model, folder, anchor.input_size, source, anchor.official)
    if anchor.normalization is not None:
        renamed.normalization = anchor.normalization
    if anchor.num_classes == net.num_classes:
        renamed.class_names, renamed.several_labels = net.class_names, net.several_labels
    return renamed


def _sorted_by_cost(anchors: Sequence[Anchor], parts: Mapping[str, PartFlops]) -> list[Anchor]:
    """The anchors from small to large in FLOPs (equal ones as given); says so where that changes the order."""
    ordered = sorted(anchors, key=lambda anchor: parts[anchor.name].whole)
    if ordered != list(anchors):
        listed = ', '.join(f'{anchor.name} ({parts[anchor.name].whole / 1e9:.3g} GFLOPs)' for anchor in ordered)
        _log.warning('anchors sorted by cost: %s', listed)
    return ordered
