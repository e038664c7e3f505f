"""Builds a network from legs of a zoo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..anchors.anchor import Anchor
from ..anchors.registry import register_adapter
from ..errors import CannotStitch, SnnetError
from ..saving.anchor_rows import MAX_CLASSES, AnchorRow
from ..stitching.stitch import Leg
from ..utils.typed_json import TypedTable
from ..utils.whole_number import whole_number
from .join_layer import KINDS, MAX_STRIDE
from .legs_text import parse_legs, unknown_network
from .reassembled import Reassembled
from .reassembled_anchor import ReassembledAnchor

STEMS = ('own', 'new')
"""The stem of the first leg's network, or the paper's."""
HEADS = ('auto', 'own', 'new')
"""The head of the last leg's network, the paper's, or the former where possible."""


def reassemble(
    legs: str | Sequence[Leg],
    zoo: Mapping[str, Anchor],
    *,
    stem: str = 'own',
    head: str = 'auto',
    joins: str = 'published',
    strides: Sequence[int] | None = None,
    resample: bool = True,
    num_classes: int | None = None,
    seed: int = 0,
) -> Reassembled:
    """Builds a network from legs of a zoo. It holds copies of what the legs need; the zoo stays as it is.

    Joins, new stem and new head start with torch's usual random weights; `initialize_joins` fits the joins.

    Args:
        legs: such as 'regnety_160[0:2] > regnety_016[23:27]', see `parse_legs`: positions are those of the networks'
            lines. If the first leg starts at 0 or is open, the stem of its network comes before it; if it starts
            further down, a join leads from that stem to its start. The last leg may be open.
        zoo: networks by the names that the legs use, all for one image size.
        stem: 'own' (of the network of the first leg) or 'new' (the paper's: convolution and max pooling).
        head: 'own' (of the network of the last leg: it must run to its end, the number of classes must fit, and the
            prefix tokens that the head looks at must be there), 'new' (pooling and a linear layer), or 'auto': its own
            where that is possible.
        joins: 'published' or 'plain', see `JoinLayer`.
        strides: of the joins between the legs; by default what the text of the legs says, or 1.
        resample: give every leg the grid that it has in its own network: average pooling makes a grid smaller, bilinear
            interpolation larger. Otherwise it runs on the grid that arrives (as in the published networks), which
            blocks that are tied to their grid refuse.
        num_classes: width of the logits; that of the last leg's network by default.
        seed: of the random weights.

    Raises:
        SnnetError: a leg, an option or a class count that is out of range.
        CannotStitch: networks of different image sizes, a leg that does not run on what arrives, or an own head that
            does not fit.
    """
    num_classes = None if num_classes is None else whole_number('num_classes', num_classes)
    _check_options(stem, head, joins, num_classes)
    written: Sequence[int] | None = None
    if isinstance(legs, str):
        legs, written = parse_legs(legs, zoo)
    plan = _checked_legs(legs, zoo, stem)
    steps = _checked_strides(written if strides is None else strides, len(legs), len(plan))
    classes = num_classes or zoo[plan[-1].anchor].num_classes
    plan[-1] = _with_end(plan, zoo, head, classes)
    parts = [zoo[leg.anchor].cut(leg.start, leg.stop) for leg in plan]
    own_or_new = 'own' if plan[-1].stop is None else 'new'
    options = {'stem': stem, 'head': own_or_new, 'joins': joins, 'resample': resample, 'num_classes': classes}
    return Reassembled(plan, parts, options, seed, steps)


def _check_options(stem: str, head: str, joins: str, num_classes: int | None) -> None:
    for what, value, allowed in (('stem', stem, STEMS), ('head', head, HEADS), ('joins', joins, KINDS)):
        if value not in allowed:
            raise SnnetError(f"{what} must be one of {', '.join(allowed)}, not '{value}'")
    if num_classes is not None and num_classes < 1:
        raise SnnetError(f'a network needs at least one class, not num_classes={num_classes}')


def _checked_legs(legs: Sequence[Leg], zoo: Mapping[str, Anchor], stem: str) -> list[Leg]:
    """The legs, checked.

    The first one is open if the stem is its network's own. If it starts further down, that stem becomes a leg that
    holds nothing else, in front of it.
    """
    if not legs:
        raise SnnetError('a reassembled network needs at least one leg, none given')
    plan = list(legs)
    sizes = {}
    for i, leg in enumerate(plan):
        if leg.anchor not in zoo:
            raise CannotStitch(unknown_network(leg, leg.anchor, zoo))
        sizes[leg.anchor] = 'x'.join(map(str, zoo[leg.anchor].input_size))
        last = len(zoo[leg.anchor].line())
        start, stop = leg.start or 0, last if leg.stop is None else leg.stop
        only_stem = i == 0 and leg.start is None and stop == 0 and stem == 'own' and len(plan) > 1
        if not (0 <= start < stop <= last or only_stem):
            raise CannotStitch(
                f'leg {leg}: positions of {leg.anchor} run from 0 to {last}, and a leg holds at least one module'
            )
        if (i and leg.start is None) or (i < len(plan) - 1 and leg.stop is None):
            raise CannotStitch(f'leg {leg} is open, but only the first leg may have no start and the last no stop')
    if len(set(sizes.values())) > 1:
        listed = ', '.join(f'{name} {size}' for name, size in sizes.items())
        raise CannotStitch(f'the networks take images of different sizes: {listed}')
    first = plan[0]
    if stem == 'new':
        plan[0] = replace(first, start=first.start or 0)
    elif first.start:
        plan.insert(0, Leg(first.anchor, None, 0))
    else:
        plan[0] = replace(first, start=None)
    return plan


def _checked_strides(strides: Sequence[int] | None, legs: int, planned: int) -> tuple[int, ...]:
    """One stride per join; the join behind a stem that was put in front has stride 1."""
    found = (1,) * (legs - 1) if strides is None else tuple(strides)
    if len(found) != legs - 1:
        raise SnnetError(f'{legs} legs have {legs - 1} joins between them, but {len(found)} strides were given')
    wrong = [stride for stride in found if not 1 <= stride <= MAX_STRIDE]
    if wrong:
        raise SnnetError(f'the stride of a join must be 1 to {MAX_STRIDE}, not {wrong[0]}')
    return (1,) * (planned - legs) + found


def _with_end(plan: Sequence[Leg], zoo: Mapping[str, Anchor], head: str, classes: int) -> Leg:
    """The last leg: open if it ends in the head of its network, closed if a new head follows."""
    leg, last = plan[-1], zoo[plan[-1].anchor]
    if classes < 1:
        raise CannotStitch(f'{last.name} has no head, so the number of classes is unknown: pass num_classes')
    why_new = 'a new one was asked for' if head == 'new' else _why_no_own_head(plan, zoo, classes)
    if head == 'own' and why_new:
        raise CannotStitch(f'{leg} cannot end in the head of its network: {why_new}')
    end = len(last.line()) if leg.stop is None else leg.stop
    return replace(leg, stop=end if why_new else None)


def _why_no_own_head(plan: Sequence[Leg], zoo: Mapping[str, Anchor], classes: int) -> str:
    """Why the last leg cannot end in the head of its network; empty if it can."""
    last = zoo[plan[-1].anchor]
    if plan[-1].stop not in (None, len(last.line())):
        return f'the leg does not run to position {len(last.line())}, the last'
    if last.num_classes < 1:
        return 'it has none'
    if classes != last.num_classes:
        return f'it knows {last.num_classes} classes, not {classes}'
    prefix = None
    for leg in plan:
        own, stop = zoo[leg.anchor].boundaries, -1 if leg.stop is None else leg.stop
        through = leg.start is None or prefix == own[leg.start].prefix
        prefix = own[stop].prefix if through else 0
    if prefix != last.boundaries[-1].prefix:
        return f'the {last.boundaries[-1].prefix} prefix tokens that it looks at are not there'
    return ''


def rebuild(row: AnchorRow) -> Anchor:
    """The anchor of a row of config.json, with random weights."""
    table = TypedTable(row.args, f'{row.where}: args')
    table.only(('legs', 'zoo', 'stem', 'head', 'joins', 'seams', 'resample', 'num_classes'))
    zoo = {member.name: member.build() for member in map(AnchorRow.read, table.rows('zoo', 100))}
    options: dict[str, Any] = {name: table.text(name) for name in ('stem', 'head', 'joins') if table.has(name)}
    if table.has('seams'):  # the name of this option in nets that were saved earlier
        options['joins'] = table.text('seams')
    if table.has('resample'):
        options['resample'] = table.boolean('resample')
    if table.has('num_classes'):
        options['num_classes'] = table.integer('num_classes', 1, MAX_CLASSES)
    return ReassembledAnchor(reassemble(table.text('legs', 10_000), zoo, **options), row.name)


register_adapter(Reassembled, ReassembledAnchor)
