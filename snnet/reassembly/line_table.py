"""The line of a network as a table: what lies at each position, and the module behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..anchors.anchor import Anchor
from ..anchors.boundary import Boundary
from .zoo import leg_params


@dataclass(frozen=True)
class LineRow:
    """A position of a line.

    Attributes:
        position: from 0; legs are slices of these.
        module: name in the network of the module behind the position; the head behind the last one.
        boundary: what flows at the position.
        params: number of parameters of the module.
    """

    position: int
    module: str
    boundary: Boundary
    params: int


def line_rows(anchor: Anchor) -> list[LineRow]:
    """A row for every position of a line, the last of which is followed by the head.

    Raises:
        CannotStitch: the network does not run as a line.
    """
    count = len(anchor.line())
    params = [leg_params(anchor, p, p + 1) for p in range(count)] + [leg_params(anchor, count, None)]
    names = [*module_names(anchor), 'head']
    return [LineRow(p, names[p], boundary, params[p]) for p, boundary in enumerate(anchor.boundaries)]


def format_line(rows: Sequence[LineRow]) -> str:
    """The table as text."""
    width = max(6, *(len(row.module) for row in rows))
    lines = [f'{"position":>8}  {"module":{width}}  {"grid":>7}  {"channels":>8}  {"parameters":>10}']
    for row in rows:
        grid = 'x'.join(map(str, row.boundary.grid))
        lines.append(f'{row.position:8}  {row.module:{width}}  {grid:>7}  {row.boundary.channels:8}  {row.params:10,}')
    return '\n'.join(lines)


def module_names(anchor: Anchor) -> list[str]:
    """Name of each module of a line within the network.

    A part of a line that was traced and is not a module of the network is called after the first module in it.
    """
    known = {id(module): name for name, module in anchor.model.named_modules()}
    names = []
    for module in anchor.line():
        found = [known[id(inner)] for inner in module.modules() if known.get(id(inner))]
        names.append(found[0] if found else type(module).__name__)
    return names
