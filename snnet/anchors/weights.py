"""Networks with the weights that a user asked for: timm's pretrained ones, a local file, or none."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from ..errors import NoClassifier, NoWeights, SnnetError, reason_of
from .anchor import Anchor, Source
from .class_names import names_of_weights
from .names import HUB, LOCAL, NamedNetwork, resolve
from .network_of_weights import nearest_network
from .new_head import has_new_head, mark_new_head
from .registry import as_anchor, image_channels
from .weight_files import read_weights

_log = logging.getLogger(__name__)


def load_model(
    named: NamedNetwork, *, pretrained: bool, num_classes: int | None = None, headless: bool = False, **args: Any
) -> nn.Module:
    """Makes the network as timm does, with the weights that were asked for.

    Args:
        named: the network.
        pretrained: load weights (always the case with a local file or folder).
        num_classes: width of the logits; by default what the weights hold. A classifier of another width is new, as
            in timm, and the log says so. 0 leaves it out: the network gives embeddings.
        headless: let a file without a classifier give a network without one, where `num_classes` is None.
        args: further arguments of `timm.create_model`.

    Raises:
        NoWeights: the weights cannot be had, cannot be read, or belong to another network.
        NoClassifier: they hold no classifier, and `num_classes` asks for no new one.
        SnnetError: timm does not take one of the arguments.
    """
    args = {key: value for key, value in args.items() if value is not None}
    if num_classes is not None and num_classes < 0:
        raise SnnetError(f'{named.name} has classes or none (0, embeddings), not num_classes={num_classes}')
    if named.file is not None:
        return _load_file(named, num_classes, args, headless)
    if num_classes is not None:
        args['num_classes'] = num_classes
    pretrained = pretrained or named.is_local
    try:
        model: nn.Module = timm.create_model(named.model, pretrained=pretrained, **args)
    except Exception as error:  # whatever wrong arguments, no connection or a broken download lead to
        raise _explained(named, args, error) from error
    held = (getattr(model, 'pretrained_cfg', None) or {}).get('num_classes')
    if pretrained and held is not None and getattr(model, 'num_classes', held) not in (held, 0):
        classes = model.num_classes
        _log.warning('%s: its weights hold %d classes, so the classifier for %d is new', named.name, held, classes)
        mark_new_head(model)
    return model


def load_anchor(
    text: str,
    *,
    pretrained: bool,
    num_classes: int | None = None,
    img_size: int | None = None,
    drop_path_rate: float | None = None,
    official: bool = False,
    headless: bool = False,
) -> Anchor:
    """The anchor that a user names (see `resolve` and `load_model`).

    Args:
        text: the name.
        pretrained: load weights.
        num_classes: width of the logits.
        img_size: height and width of an image in pixels.
        drop_path_rate: stochastic depth in training.
        official: end stitches as the published implementation did.
        headless: see `load_model`.
    """
    named = resolve(text)
    config = get_pretrained_cfg(named.model) if _is_registered(named) else None
    fixed = bool(config is not None and config.fixed_input_size)
    model = load_model(
        named,
        pretrained=pretrained,
        num_classes=num_classes,
        headless=headless,
        drop_path_rate=drop_path_rate,
        img_size=img_size if fixed else None,  # networks that take any size know no such argument
    )
    size = (image_channels(model), img_size, img_size) if img_size is not None else None
    learned = (pretrained or named.is_local) and named.file is None and not has_new_head(model)
    names = names_of_weights(model) if learned else None
    if not _is_registered(named):  # what timm noted says how to make it again
        return _named(as_anchor(model, named.name, input_size=size, official=official), names)
    args: dict[str, Any] = {'num_classes': getattr(model, 'num_classes', None)}
    if drop_path_rate is not None:
        args['drop_path_rate'] = drop_path_rate
    if fixed and img_size is not None:
        args['img_size'] = img_size
    source = Source(named.model, args)
    return _named(as_anchor(model, named.name, input_size=size, source=source, official=official), names)


def _named(anchor: Anchor, class_names: tuple[str, ...] | None) -> Anchor:
    anchor.class_names = class_names
    return anchor


def default_size(text: str) -> tuple[int, int, int] | None:
    """The input size that a named network was trained at; None where only the network itself can say."""
    named = resolve(text)
    config = get_pretrained_cfg(named.model) if _is_registered(named) else None
    if config is None or config.input_size is None:
        return None
    channels, height, width = config.input_size
    return channels, height, width


def classes_held(named: NamedNetwork, state: Mapping[str, Tensor]) -> int | None:
    """Rows of the classifier in a file, or None where it has none under the name that timm gives it."""
    for name in _classifiers(named):
        for key in (f'{name}.bias', f'{name}.weight'):
            if key in state:
                return len(state[key])
    return None


def _classifiers(named: NamedNetwork) -> tuple[str, ...]:
    """Names of the modules that turn features into logits."""
    config = get_pretrained_cfg(named.model) if _is_registered(named) else None
    classifier = getattr(config, 'classifier', None) or ()
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def _is_registered(named: NamedNetwork) -> bool:
    return not named.model.startswith((HUB, LOCAL, 'hf_hub:'))


def _load_file(named: NamedNetwork, num_classes: int | None, args: dict[str, Any], headless: bool) -> nn.Module:
    """The network with the weights of a local file, every one of them; then a new classifier if that was asked for."""
    assert named.file is not None
    state = read_weights(named.file, named.name, _shapes(named, args))
    held = classes_held(named, state)
    if held is not None:
        args['num_classes'] = held
    try:
        model = _with_weights(named, state, args)
    except Exception as error:  # whatever wrong arguments or foreign weights lead to
        if held is None and _lacks_only(str(error), _classifiers(named)):
            return _load_headless(named, state, 0 if headless and num_classes is None else num_classes, args)
        raise _explained(named, args, error, state) from error
    if num_classes == 0:
        cast('Any', model).reset_classifier(0)
    elif num_classes is not None and num_classes != model.num_classes:
        _log.warning(
            '%s: %s holds %d classes, so the classifier for %d classes is new',
            named.name, named.file, model.num_classes, num_classes,
        )  # fmt: skip
        cast('Any', model).reset_classifier(num_classes)  # a method of timm's networks
        mark_new_head(model)
    return model


def _load_headless(
    named: NamedNetwork, state: Mapping[str, Tensor], num_classes: int | None, args: dict[str, Any]
) -> nn.Module:
    """The network with all weights but the classifier's from a file without one, as self-supervised training leaves."""
    if num_classes is None:
        raise NoClassifier(
            f'{named.file} holds no classifier for {named.name} ({", ".join(_classifiers(named))}): '
            f'give num_classes= (--num-classes) for a new one'
        )
    args['num_classes'] = num_classes
    fresh = timm.create_model(named.model, pretrained=False, **args)
    own = fresh.state_dict()
    new = {key: tensor for key, tensor in own.items() if key.rpartition('.')[0] in _classifiers(named)}
    unused = sorted(state.keys() - own.keys()) if own.keys() - new.keys() <= state.keys() else []
    known = {key: tensor for key, tensor in state.items() if key not in unused}
    try:
        model = _with_weights(named, {**known, **new}, args)
    except Exception as error:
        raise _explained(named, args, error, state) from error
    if num_classes == 0:
        _log.info('%s: %s holds no classifier, and gets none', named.name, named.file)
        return model
    _log.warning(
        '%s: %s holds no classifier, so the one for %d classes is new%s',
        named.name, named.file, num_classes,
        f'; {len(unused)} tensors are not used, such as {", ".join(unused[:3])}' if unused else '',
    )  # fmt: skip
    mark_new_head(model)
    return model


def _with_weights(named: NamedNetwork, state: Mapping[str, Tensor], args: Mapping[str, Any]) -> nn.Module:
    overlay: dict[str, Any] = {'state_dict': dict(state)}
    if 'num_classes' in args:
        overlay['num_classes'] = args['num_classes']
    model: nn.Module = timm.create_model(named.model, pretrained=True, pretrained_cfg_overlay=overlay, **args)
    return model


def _shapes(named: NamedNetwork, args: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Names and shapes of the network's tensors."""
    try:
        with torch.device('meta'):
            model = timm.create_model(named.model, pretrained=False, **args)
    except Exception:  # some networks compute with numbers while they are built
        try:
            model = timm.create_model(named.model, pretrained=False, **args)
        except Exception as error:
            raise _explained(named, dict(args), error) from error
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


def _lacks_only(message: str, modules: tuple[str, ...]) -> bool:
    """Whether an error of loading is about missing keys of these modules only (and perhaps unexpected keys)."""
    found = re.search(r'Missing key\(s\) in state_dict: (.*)', message)
    missing = re.findall(r'"([^"]+)"', found[1]) if found else []
    shapes = 'size mismatch' in message
    return bool(missing) and not shapes and all(key.rpartition('.')[0] in modules for key in missing)


def _explained(
    named: NamedNetwork, args: dict[str, Any], error: Exception, state: Mapping[str, Tensor] | None = None
) -> SnnetError:
    """The error of `timm.create_model` in one sentence: wrong arguments, weights that do not fit, or no weights."""
    if _is_registered(named):
        try:
            timm.create_model(named.model, pretrained=False, **args)
        except Exception as cause:
            listed = ', '.join(f'{key}={value}' for key, value in args.items())
            return SnnetError(f'{named.name} does not take one of the arguments {listed}: {reason_of(cause)}')
    if named.is_local or 'loading state_dict' in str(error):
        other = nearest_network(state, named.model) if state and _is_registered(named) else ''
        hint = f'; it fits {other}: {other}={named.file}' if other else ''
        return NoWeights(_misfit(named, str(error)) + hint)
    if not _is_registered(named):
        repository = named.model.partition(':')[2]
        return NoWeights(
            f'{named.name}: the repository {repository} of the Hugging Face Hub cannot be loaded '
            f'({type(error).__name__}: {reason_of(error)})'
        )
    looked = get_pretrained_cfg(named.model)
    places = [str(p) for p in (getattr(looked, 'hf_hub_id', None), getattr(looked, 'url', None)) if p]
    return NoWeights(
        f'no weights for {named.name}: looked for {named.model} at {" and ".join(places) or "no known place"} '
        f'({type(error).__name__}); give a local file with {named.name}=FILE, or start without weights '
        f'(--no-pretrained)'
    )


def network_of_file(path: Path) -> str:
    """The name of a network with nearly all tensors of a file of weights; '' where none is found.

    Raises:
        NoWeights: the file cannot be read.
    """
    return nearest_network(read_weights(path, str(path), {}), '')


def _misfit(named: NamedNetwork, message: str) -> str:
    """torch's list of keys that do not fit, in one sentence."""
    lines = [line.strip() for line in message.splitlines()]
    shapes = [m for line in lines if (m := re.match(r'size mismatch for (\S+): .*?(\[.*?\]).*?(\[.*?\])', line))]
    keys = [line.replace('"', '').rstrip(':. ') for line in lines if re.match(r'(Missing|Unexpected) key', line)]
    parts = [f'{m[1]} is {m[2]} in the file and {m[3]} in the network' for m in shapes[:3]]
    parts += [line if len(line) < 160 else line[:157] + '...' for line in keys]
    more = f' (and {len(shapes) - 3} more)' if len(shapes) > 3 else ''
    source = named.file or 'the pretrained weights'
    reason = '; '.join(parts) or next(iter(lines), 'no reason given')
    return f'{source} does not fit {named.name} ({named.model}): {reason}{more}'
