"""Which anchors cannot be in one net, and why."""

from __future__ import annotations

from collections.abc import Sequence

from ..anchors.anchor import Anchor
from ..errors import CannotStitch, SnnetError


def check_anchors(anchors: Sequence[Anchor]) -> None:
    """Refuses anchors that cannot be in one net.

    Raises:
        SnnetError: none, or two of one name.
        CannotStitch: they differ in number of classes, image size or type of weights, or one does not run on its size.
    """
    if not anchors:
        raise SnnetError('a stitchable network needs at least one anchor, none given')
    for anchor in anchors:
        _ = anchor.boundaries  # runs the anchor once, and says so where it does not run on its image size
    names = [anchor.name for anchor in anchors]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SnnetError(f"two anchors are called '{twice}': give each its own name")
    headless = [anchor.name for anchor in anchors if anchor.num_classes == 0]
    if 0 < len(headless) < len(anchors):
        raise CannotStitch(
            f'{", ".join(headless)} has no classifier (0 classes), the others have: give num_classes= (--num-classes) '
            f'for new ones, or num_classes=0 for a net of embeddings'
        )
    for what, values, remedy in (
        (
            'number of classes',
            [anchor.num_classes for anchor in anchors],
            'num_classes= (--num-classes) gives all of them new classifiers of one width',
        ),
        (
            'image size',
            ['x'.join(map(str, anchor.input_size)) for anchor in anchors],
            'img_size= (--img-size), or input_size= of as_anchor, gives all of them one',
        ),
        (
            'type of their weights',
            [_type(anchor) for anchor in anchors],
            'give their models one before as_anchor, such as model.float()',
        ),
    ):
        if len(set(values)) > 1:
            listed = ', '.join(f'{name} {value}' for name, value in zip(names, values, strict=True))
            raise CannotStitch(f'anchors differ in {what}: {listed}; {remedy}')


def _type(anchor: Anchor) -> str:
    """The type of the first weight of an anchor."""
    kinds = (str(weight.dtype) for weight in anchor.parameters() if weight.is_floating_point())
    return next(kinds, '').removeprefix('torch.')
