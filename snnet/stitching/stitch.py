"""Legs and stitches: immutable values that print as 'deit_tiny[:7] > deit_small[7:]'."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import SnnetError, UnknownStitch, excerpt

_LEG = re.compile(r'(?P<anchor>[^\[\]]+)\[(?P<start>\d*):(?P<stop>\d*)\]')


@dataclass(frozen=True)
class Leg:
    """A run of one anchor, in the notation of a Python slice over its line.

    Attributes:
        anchor: name of the anchor.
        start: position at which it begins; None for the image, so that the stem runs.
        stop: position at which it ends; None for the logits, so that the head runs.
    """

    anchor: str
    start: int | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        if not self.anchor or set(self.anchor) & set('[]>'):
            raise SnnetError(
                f"'{self.anchor}' cannot name an anchor: a name is not empty and contains none of [, ] and >"
            )

    def __str__(self) -> str:
        start = '' if self.start is None else self.start
        stop = '' if self.stop is None else self.stop
        return f'{self.anchor}[{start}:{stop}]'

    @classmethod
    def parse(cls, text: str) -> Leg:
        """The leg that prints as `text`.

        Raises:
            SnnetError: the text is not a valid leg.
        """
        match = _LEG.fullmatch(text.strip())
        if match is None:
            raise SnnetError(f"'{excerpt(text)}' is not a valid leg; a leg reads like deit_tiny[:7]")
        start, stop = (int(match[end]) if match[end] else None for end in ('start', 'stop'))
        return cls(match['anchor'], start, stop)


@dataclass(frozen=True)
class Stitch:
    """A sub-network: legs with a stitch layer between each leg and the next.

    One leg is an anchor itself; two are SN-Net; three are the paper's Ti-S-B, and SN-Netv2.

    Attributes:
        legs: in the order they run; the first starts at the image, the last ends in the logits.
        layers: index of the stitch layer between leg i and leg i + 1; several stitches may share one.
    """

    legs: tuple[Leg, ...]
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        inner = (*(leg.start for leg in self.legs[1:]), *(leg.stop for leg in self.legs[:-1]))
        whole = bool(self.legs) and self.legs[0].start is None and self.legs[-1].stop is None and None not in inner
        if not whole or len(self.layers) != len(self.legs) - 1:
            raise SnnetError(
                f"'{excerpt(str(self))}' is not a valid stitch: it needs legs that lead from the image [: to the "
                f'logits :] and one stitch layer between each leg and the next '
                f'(it has {len(self.legs)} legs and {len(self.layers)} stitch layers)'
            )

    def __str__(self) -> str:
        return ' > '.join(map(str, self.legs))

    @classmethod
    def parse(cls, text: str, layers: tuple[int, ...]) -> Stitch:
        """The stitch that prints as `text` and uses these stitch layers."""
        return cls(tuple(Leg.parse(part) for part in text.split('>')), tuple(layers))


def parse_ids(text: str, count: int) -> list[int]:
    """Stitch ids from a list such as '0-2,24'; all of them if it is empty.

    Raises:
        UnknownStitch: a part of the list is not an id below `count`, or a range of such ids.
    """
    if not text:
        return list(range(count))
    found: set[int] = set()
    for part in text.split(','):
        match = re.fullmatch(r'\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?', part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < count:
            raise UnknownStitch(f"stitch ids are 0 to {count - 1} and ranges of them, but got '{excerpt(part)}'")
        found.update(range(first, last + 1))
    return sorted(found)
