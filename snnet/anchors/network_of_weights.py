"""Which network a file of weights belongs to, when it does not fit the one that was named."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import timm
import torch
from timm.models import get_pretrained_cfg, list_models
from torch import Tensor

from .names import ALIASES

_SECONDS = 6.0
"""Names are tried for so much CPU time: the common ones first, then those in timm's file of the one that was named."""
_ALIKE = 0.9
"""Share of the tensors that must have their names and shapes."""
_NEARLY = 0.95
"""A file with this share of the network that was named is meant for it."""
_NAMES_ALIKE = 0.3
"""Share of the tensors of a family's smallest network whose names must be in the file."""
_FAMILIES = ('deit_tiny', 'resnet18', 'swin_tiny', 'levit_128s', 'convnext_tiny', 'efficientnet_b0', 'regnety_160')
"""A network of each of some common families."""
_HEAD_TENSORS = 8
"""So many tensors of a file may be those of heads."""
_PREFIXES = 6
"""Beginnings of names under which a network may lie: those that most tensors have."""

_Sizes = Mapping[str, tuple[int, ...]]
"""Sizes of tensors by their names."""


def nearest_network(state: Mapping[str, Tensor], model: str) -> str:
    """The name of a network with nearly all tensors of a file, by name and shape; '' where none is found in time.

    Args:
        state: the tensors, by the names of the file.
        model: timm's name of the network that they do not fit.
    """
    tables = list(_under_prefixes({name: tuple(tensor.shape) for name, tensor in state.items()}))
    named = model.partition('.')[0]
    if max(_likeness(held, _shapes(named)) for held in tables) > _NEARLY:
        return ''  # it is the network that was named, damaged or changed
    end, best = time.process_time() + _SECONDS, (_ALIKE, '')
    for name in _candidates(tables, named):
        if best[0] == 1 or time.process_time() > end:
            break
        own = _shapes(ALIASES.get(name, name).partition('.')[0])
        best = max(best, (max(_likeness(held, own) for held in tables), name), key=lambda found: found[0])
    return best[1]


def _under_prefixes(held: _Sizes) -> Iterator[_Sizes]:
    """The tensors of a file, and those under the prefixes that most of them have, without it.

    Self-supervised checkpoints hold a network as `module.encoder_q.` or `backbone.`, sometimes beside others.
    """
    yield held
    prefixes = Counter(name[: place + 1] for name in held for place, letter in enumerate(name) if letter == '.')
    for prefix, count in prefixes.most_common(_PREFIXES):
        if count > _HEAD_TENSORS:
            yield {name.removeprefix(prefix): size for name, size in held.items() if name.startswith(prefix)}


def _candidates(tables: Sequence[_Sizes], named: str) -> Iterator[str]:
    """Names to try: of the families whose tensors have names as in the file, the papers' networks first."""
    for first in [named, *_FAMILIES]:
        own = _shapes(ALIASES.get(first, first).partition('.')[0])
        if any(len(own.keys() & held.keys()) > _NAMES_ALIKE * len(own) for held in tables):
            module = timm.models.model_entrypoint(ALIASES.get(first, first).partition('.')[0]).__module__
            yield from (name for name in ALIASES if name.partition('_')[0] == first.partition('_')[0])
            yield from sorted(list_models(module=module.rpartition('.')[2]), key=len)


def _shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's tensors without its classifier; none where it cannot be built without memory."""
    try:
        with torch.device('meta'):
            network = timm.create_model(architecture, pretrained=False)
    except Exception:  # networks that compute with real numbers while they are built
        return {}
    heads = getattr(get_pretrained_cfg(architecture), 'classifier', None) or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    state = network.state_dict().items()
    return {key: tuple(tensor.shape) for key, tensor in state if key.rpartition('.')[0] not in heads}


def _likeness(held: Mapping[str, tuple[int, ...]], own: Mapping[str, tuple[int, ...]]) -> float:
    """Share of a network's tensors that the file holds with their shapes, and of the file's that the network has."""
    alike = sum(held.get(name) == shape for name, shape in own.items())
    return alike / max(1, len(own), len(held) - _HEAD_TENSORS)
