"""Networks with the weights that a user asked for: timm's pretrained ones, a local file, or none."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import timm
from timm.models import get_pretrained_cfg, load_state_dict
from torch import Tensor, nn

from ..errors import NoWeights, SnnetError, reason_of
from .anchor import Anchor, Source
from .names import NamedNetwork, resolve
from .registry import as_anchor

_log = logging.getLogger(__name__)


def load_model(named: NamedNetwork, *, pretrained: bool, num_classes: int | None = None, **args: Any) -> nn.Module:
    """Makes the network as timm does, with the weights that were asked for.

    Args:
        named: what to make.
        pretrained: load weights (always the case with a local file).
        num_classes: width of the logits; what the weights hold by default. A classifier of another width is made
            anew, as timm does.
        args: further arguments of `timm.create_model`.

    Raises:
        NoWeights: the weights cannot be had, cannot be read, or belong to another network.
        SnnetError: timm does not take one of the arguments.
    """
    args = {key: value for key, value in args.items() if value is not None}
    if num_classes is not None and num_classes < 1:
        raise SnnetError(f'{named.name} needs at least one class, num_classes={num_classes} was asked for')
    if named.file is not None:
        return _load_file(named, num_classes, args)
    if num_classes is not None:
        args['num_classes'] = num_classes
    try:
        return timm.create_model(named.model, pretrained=pretrained, **args)
    except Exception as error:  # whatever wrong arguments, no connection or a broken download lead to
        raise _explained(named, args, error) from error


def _load_file(named: NamedNetwork, num_classes: int | None, args: dict[str, Any]) -> nn.Module:
    """The network with the weights of a local file, every one of them; then a new classifier if that was asked for."""
    state = _read(named)
    overlay: dict[str, Any] = {'state_dict': state}
    held = classes_held(named, state)
    if held is not None:
        overlay['num_classes'] = args['num_classes'] = held
    try:
        model = timm.create_model(named.model, pretrained=True, pretrained_cfg_overlay=overlay, **args)
    except Exception as error:  # whatever wrong arguments or foreign weights lead to
        raise _explained(named, args, error) from error
    if num_classes is not None and num_classes != model.num_classes:
        _log.warning(
            '%s: %s holds %d classes, so the classifier for %d starts anew',
            named.name, named.file, model.num_classes, num_classes,
        )  # fmt: skip
        model.reset_classifier(num_classes)
    return model


def _explained(named: NamedNetwork, args: dict[str, Any], error: Exception) -> SnnetError:
    """The error of `timm.create_model` in one sentence: wrong arguments, weights that do not fit, or no weights."""
    try:
        timm.create_model(named.model, pretrained=False, **args)
    except Exception as cause:
        listed = ', '.join(f'{key}={value}' for key, value in args.items())
        return SnnetError(f'{named.name} does not take one of the arguments {listed}: {reason_of(cause)}')
    if named.file is not None or 'loading state_dict' in str(error):
        return NoWeights(_misfit(named, str(error)))
    looked = get_pretrained_cfg(named.model)
    places = [str(p) for p in (getattr(looked, 'hf_hub_id', None), getattr(looked, 'url', None)) if p]
    return NoWeights(
        f'no weights for {named.name}: looked for {named.model} at {" and ".join(places) or "no known place"} '
        f'({type(error).__name__}); give a local file with {named.name}=FILE, or start without weights '
        f'(--no-pretrained)'
    )


def load_anchor(
    text: str,
    *,
    pretrained: bool,
    num_classes: int | None = None,
    img_size: int | None = None,
    drop_path_rate: float | None = None,
    official: bool = False,
) -> Anchor:
    """The anchor that a user names with NAME or NAME=FILE (see `resolve` and `load_model`).

    Args:
        text: the name.
        pretrained: load weights.
        num_classes: width of the logits.
        img_size: height and width of an image, in pixels.
        drop_path_rate: stochastic depth while training.
        official: end stitches as the published implementation did.
    """
    named = resolve(text)
    config = get_pretrained_cfg(named.model)
    fixed = bool(config is not None and config.fixed_input_size)
    model = load_model(
        named,
        pretrained=pretrained,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        img_size=img_size if fixed else None,  # networks that take any size know no such argument
    )
    args: dict[str, Any] = {'num_classes': getattr(model, 'num_classes', None)}
    if drop_path_rate is not None:
        args['drop_path_rate'] = drop_path_rate
    if fixed and img_size is not None:
        args['img_size'] = img_size
    size = (3, img_size, img_size) if img_size is not None else None
    return as_anchor(model, named.name, input_size=size, source=Source(named.model, args), official=official)


def _read(named: NamedNetwork) -> dict[str, Tensor]:
    """The tensors of a local file, without unpickling anything but tensors."""
    try:
        state = load_state_dict(str(named.file))
    except Exception as error:  # whatever a damaged or foreign file leads to
        raise NoWeights(f'{named.name}: {named.file} holds no readable weights ({reason_of(error)})') from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise NoWeights(f'{named.name}: {named.file} holds no table of tensors')
    return state


def classes_held(named: NamedNetwork, state: Mapping[str, Tensor]) -> int | None:
    """Rows of the classifier in a file, or None where it has none under the name that timm gives it."""
    config = get_pretrained_cfg(named.model)
    classifier = getattr(config, 'classifier', None) or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    rows = [len(state[f'{name}.bias']) for name in names if f'{name}.bias' in state]
    return rows[0] if rows else None


def _misfit(named: NamedNetwork, message: str) -> str:
    """torch's list of keys that do not fit, in one sentence."""
    lines = [line.strip() for line in message.splitlines()]
    shapes = [m for line in lines if (m := re.match(r'size mismatch for (\S+): .*?(\[.*?\]).*?(\[.*?\])', line))]
    keys = [re.sub(r'[":.]+$', '', line) for line in lines if re.match(r'(Missing|Unexpected) key', line)]
    parts = [f'{m[1]} is {m[2]} in the file and {m[3]} in the network' for m in shapes[:3]]
    parts += [line if len(line) < 160 else line[:157] + '...' for line in keys]
    more = f' (and {len(shapes) - 3} more)' if len(shapes) > 3 else ''
    source = named.file or 'the pretrained weights'
    reason = '; '.join(parts) or next(iter(lines), 'no reason given')
    return f'{source} does not fit {named.name} ({named.model}): {reason}{more}'
