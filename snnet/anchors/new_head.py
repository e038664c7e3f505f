"""The classifier of a network: which modules it is, and whether it is new, so that it has to be trained first."""

from __future__ import annotations

from typing import Any

from torch import nn

_MARK = 'has_new_head'


def mark_new_head(model: nn.Module, new: bool = True) -> None:
    """Notes that a network's classifier is new, or that it has been fitted since."""
    vars(model)[_MARK] = new


def has_new_head(model: nn.Module) -> bool:
    """Whether a network's classifier was made new when its weights were loaded, and cannot teach."""
    return bool(vars(model).get(_MARK))


def new_head_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of a classifier that is new; none where it was learned."""
    return classifier_modules(model) if has_new_head(model) else []


def classifier_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that turn features into logits; none where the network does not say."""
    found = getattr(model, 'get_classifier', lambda: ())()
    return list(found) if isinstance(found, (tuple, list)) else [found]


def linear_classifiers(model: Any) -> list[nn.Linear | nn.Conv2d]:
    """The linear maps with bias whose outputs are the logits: usually one, two in a distilled network."""
    found: list[nn.Linear | nn.Conv2d] = []
    for part in (part for module in classifier_modules(model) for part in module.modules()):
        if not isinstance(part, nn.Linear | nn.Conv2d) or part.bias is None or len(part.bias) != model.num_classes:
            continue
        if isinstance(part, nn.Linear) or part.kernel_size == (1, 1):
            found.append(part)
    return found
