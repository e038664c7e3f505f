"""Which network has a Grower: two would cut and fold each other's branches."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from ..errors import SnnetError

_GROWERS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Any]] = weakref.WeakKeyDictionary()


def refuse_growing(model: nn.Module) -> None:
    """Refuses a network of which a Grower in use grows any part.

    Raises:
        SnnetError: it has one.
    """
    if any(part in _GROWERS and _GROWERS[part]() is not None for part in model.modules()):
        raise SnnetError('a Grower grows this network already: continue with it, or fold it first')


def note_grower(model: nn.Module, grower: object) -> None:
    """Notes that a Grower grows a network, as long as both exist."""
    _GROWERS[model] = weakref.ref(grower)


def forget_grower(model: nn.Module) -> None:
    """Notes that no Grower grows a network any more."""
    _GROWERS.pop(model, None)
