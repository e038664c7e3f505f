"""Reads the text of a reassembled network: legs by position or module name, and strides of joins."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..anchors.anchor import Anchor
from ..anchors.names import without_file
from ..errors import CannotStitch, SnnetError, excerpt
from ..stitching.stitch import Leg
from .line_table import module_names

_SIGN = re.compile(r'>\s*(?:([0-9]+)\s*>)?')
_NUMBER = re.compile(r'[0-9]{1,9}')
_LEG = re.compile(r'(?P<anchor>[^\[\]]+)\[(?P<start>[^:\[\]]*):(?P<stop>[^:\[\]]*)\]')


def parse_legs(text: str, zoo: Mapping[str, Anchor]) -> tuple[list[Leg], tuple[int, ...]]:
    """Legs and the strides of the joins between them.

    Legs are slices of the lines of their networks, such as 'resnet50[0:2] > regnety_032[3:9]'. A position is a number
    or the name of the module behind it, so 'resnet50[layer1.0:layer1.2]' is 'resnet50[0:2]'. A number inside the sign
    is the stride of the join: 'resnet50[0:2] >2> regnety_032[3:9]'.

    Args:
        text: as above.
        zoo: networks by the names that the legs use.

    Returns:
        The legs, and one stride per join.

    Raises:
        SnnetError: the text cannot be read.
        CannotStitch: an unknown network or module.
    """
    pieces = _SIGN.split(text)
    legs = [_parse_leg(piece.strip(), zoo) for piece in pieces[::2]]
    strides = [stride or '1' for stride in pieces[1::2]]
    endless = next((stride for stride in strides if not _NUMBER.fullmatch(stride)), None)
    if endless is not None:
        raise SnnetError(f'the stride of a join has {len(endless)} digits')
    return legs, tuple(map(int, strides))


def network_names(text: str) -> list[str]:
    """The networks that a text of legs names, each once.

    Raises:
        SnnetError: the text cannot be read.
    """
    return list(dict.fromkeys(_match_leg(piece.strip())['anchor'].strip() for piece in _SIGN.split(text)[::2]))


def _match_leg(text: str) -> re.Match[str]:
    match = _LEG.fullmatch(text)
    if match is None:
        raise SnnetError(
            f"'{text}' is not a valid leg; legs read like resnet50[:7] or resnet50[layer1.0:layer2.0], joined by >"
        )
    return match


def _parse_leg(text: str, zoo: Mapping[str, Anchor]) -> Leg:
    match = _match_leg(text)
    name, ends = match['anchor'].strip(), (match['start'].strip(), match['stop'].strip())
    name = name if name in zoo else without_file(name)  # a zoo calls networks by their files only to tell them apart
    if name not in zoo and any(end and not _NUMBER.fullmatch(end) for end in ends):
        raise CannotStitch(unknown_network(text, name, zoo))
    return Leg(name, *(_position(end, text, name, zoo) for end in ends))


def unknown_network(leg: object, name: str, zoo: Mapping[str, Anchor]) -> str:
    """Says that a leg names a network that the zoo lacks."""
    return f"leg {leg}: there is no network '{name}' in the zoo, only {', '.join(zoo)}"


def _position(end: str, leg: str, name: str, zoo: Mapping[str, Anchor]) -> int | None:
    if not end:
        return None
    if _NUMBER.fullmatch(end):
        return int(end)
    names = module_names(zoo[name])
    if end not in names:
        raise CannotStitch(
            f"leg {excerpt(leg)}: '{excerpt(end)}' is not a module of the line of {name}, which has {', '.join(names)}"
        )
    return names.index(end)
