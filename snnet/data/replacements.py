"""Which images take the place of one that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator

from ..utils.seeds import key

REPLACEMENTS = 100
"""So many other images are tried where one cannot be read."""


def replacements(draw_key: int, images: int) -> Iterator[int]:
    """The images to try one after another in place of the one of a draw, by the draw's key.

    Args:
        draw_key: of the draw whose image cannot be read.
        images: size of the data set.
    """
    for attempt in range(1, REPLACEMENTS + 1):
        yield key(draw_key, 'replace', attempt) % images
