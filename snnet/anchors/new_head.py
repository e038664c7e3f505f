"""New classifiers: random ones on top of learned weights, which have to be trained and cannot teach."""

from __future__ import annotations

from torch import nn

_MARK = 'has_new_head'


def mark_new_head(model: nn.Module) -> None:
    """Notes that a network's classifier is new."""
    vars(model)[_MARK] = True


def has_new_head(model: nn.Module) -> bool:
    """Whether a network's classifier was made new when its weights were loaded."""
    return bool(vars(model).get(_MARK))


def new_head_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of a classifier that is new; none where it was learned."""
    if not has_new_head(model):
        return []
    found = getattr(model, 'get_classifier', lambda: ())()
    return list(found) if isinstance(found, (tuple, list)) else [found]
