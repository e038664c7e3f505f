"""Names of classes: those that timm knows for its weights, and the checks for names from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset

from ..errors import SnnetError

LONGEST = 200
"""Most characters of a name."""
_SYNSET = re.compile(r'n\d{8}')


def checked_names(names: Iterable[str], num_classes: int) -> tuple[str, ...]:
    """Class names as a tuple.

    Args:
        names: one per class, in the order of the logits.
        num_classes: how many there should be.

    Raises:
        SnnetError: another number of names, or one that is empty, too long or not printable.
    """
    if isinstance(names, str):
        raise SnnetError(f"class names are a list with one name per class, not the text '{names[:60]}'")
    found = tuple(names)
    if len(found) != num_classes:
        raise SnnetError(f'{len(found)} class names were given for {num_classes} classes')
    for i, name in enumerate(found):
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST or not name.isprintable():
            raise SnnetError(f'the name of class {i} is a printable text of at most {LONGEST} characters, not {name!r}')
    return found


def imagenet_names(num_classes: int = 1000) -> tuple[str, ...] | None:
    """timm's names of the classes of ImageNet, in the order of the logits of its networks.

    Args:
        num_classes: 1,000, or the size of another subset that timm knows, such as 21,841.

    Returns:
        The names; None where timm knows no subset of that size.
    """
    subset = infer_imagenet_subset({'num_classes': num_classes})
    if subset is None:
        return None
    names = ImageNetInfo(subset).label_descriptions()
    return tuple(_tidy(name) for name in names) if len(names) == num_classes else None


def names_of_weights(model: Any) -> tuple[str, ...] | None:
    """Names of the classes that a network's pretrained weights tell apart; None where timm does not know them.

    Args:
        model: of timm, with the weights and the classifier that its pretrained config describes.
    """
    config, classes = getattr(model, 'pretrained_cfg', None) or {}, getattr(model, 'num_classes', 0)
    labels: Sequence[str] = config.get('label_names') or ()
    if len(labels) != classes:
        return imagenet_names(classes) if classes and not labels else None
    described: Mapping[str, str] = config.get('label_descriptions') or {}
    return readable(described.get(label) or label for label in labels)


def names_of_table(class_to_idx: Any) -> tuple[str, ...] | None:
    """Names in the order of their indices from a table of a data set; several names of one class are joined.

    Args:
        class_to_idx: index by name.

    Returns:
        The names; None where the table has other entries, or gaps.
    """
    table = class_to_idx if isinstance(class_to_idx, Mapping) else {}
    if not table or not all(type(index) is int for index in table.values()):
        return None
    named: dict[int, list[str]] = {}
    for name, index in table.items():
        named.setdefault(index, []).append(str(name))
    if sorted(named) != list(range(len(named))):
        return None
    return readable(', '.join(sorted(named[index])) for index in range(len(named)))


def readable(names: Iterable[str]) -> tuple[str, ...]:
    """Names without what cannot be printed; WordNet ids, as in folders of ImageNet, become words."""
    found = tuple(names)
    lemmas = _lemmas() if found and all(_SYNSET.fullmatch(name) for name in found) else {}
    return tuple(_tidy(lemmas.get(name, name)) for name in found)


@cache
def _lemmas() -> dict[str, str]:
    descriptions: dict[str, str] = ImageNetInfo('imagenet-22k').label_descriptions(as_dict=True)
    return descriptions


def _tidy(name: str) -> str:
    printable = ''.join(c if c.isprintable() else '?' for c in name)
    return printable[:LONGEST] or '?'
