"""Finds the nodes of one recording in another one of the same network."""

from __future__ import annotations

from collections import Counter
from typing import Any

from .recording import Recording


class NodeMatch:
    """Finds the nodes of one recording in another, by module, operation and order."""

    def __init__(self, one: Recording, other: Recording) -> None:
        self.other = other
        self.keys = _keys(one)
        self.found = {key: i for i, key in enumerate(_keys(other))}

    def index(self, index: int) -> int | None:
        """Index of the same node in the other recording."""
        return self.found.get(self.keys[index])

    def value(self, index: int) -> Any:
        """What the same node computed in the other recording."""
        found = self.index(index)
        return None if found is None else self.other.nodes[found].meta['value']


def _keys(run: Recording) -> list[Any]:
    times: Counter[Any] = Counter()
    keys = []
    for node in run.nodes:
        what = node.meta['path'], node.op, str(node.target)
        times[what] += 1
        keys.append((*what, times[what]))
    return keys
