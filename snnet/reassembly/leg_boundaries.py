"""What flows through a leg that receives other features than in its own network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..anchors.anchor import Anchor
from ..anchors.boundary import Boundary, boundary_of_map
from ..errors import CannotStitch, reason_of
from ..stitching.stitch import Leg


def leg_boundaries(leg: Leg, part: Anchor, given: Boundary) -> list[Boundary]:
    """The boundaries behind each module of a leg.

    If the leg receives what its own network has there, nothing needs to run; otherwise a copy without memory (torch's
    meta device) runs.

    Args:
        leg: what runs.
        part: its network, whole or cut to the leg.
        given: what flows in.

    Raises:
        CannotStitch: a module, or the head, does not run on what flows in, or is tied to another grid.
    """
    start, stop, _ = slice(leg.start, leg.stop).indices(len(part.line()))
    native = part.boundaries[start : stop + 1]
    if given == native[0]:
        return list(native[1:])
    with torch.no_grad():
        try:
            return _walk(leg, part.weightless_copy(), given, native)
        except _Refused:
            raise
        except Exception:  # some networks need real numbers: run a real copy
            return _walk(leg, part.duplicate().eval(), given, native)


class _Refused(CannotStitch):
    """A refusal that a run with real numbers would repeat."""


def _walk(leg: Leg, twin: Anchor, given: Boundary, native: Sequence[Boundary]) -> list[Boundary]:
    weight = next(twin.parameters())
    x = torch.zeros(1, *given.shape, device=weight.device, dtype=weight.dtype)
    start, now = leg.start or 0, given
    found: list[Boundary] = []
    for position, (module, before, behind) in enumerate(
        zip(twin.line()[start : start + len(native) - 1], native, native[1:], strict=False), start
    ):
        if now.grid != before.grid and twin.is_grid_bound(position, module):
            raise _Refused(_why(leg, position, now, before, 'it is tied to that grid'))
        try:
            x = module(x)
            now = _behind(x, now, before, behind)
        except Exception as error:  # anything a block may raise on a grid that is not its own
            raise CannotStitch(_why(leg, position, now, before, reason_of(error))) from error
        found.append(now)
    if leg.stop is None:
        try:
            twin.run(x, len(twin.line()), None)
        except Exception as error:
            raise CannotStitch(_why(leg, len(twin.line()), now, native[-1], reason_of(error))) from error
    return found


def _behind(x: Tensor, given: Boundary, before: Boundary, behind: Boundary) -> Boundary:
    """The boundary of the output `x` of a module that received `given`.

    In its own network the module receives `before` and gives `behind`.
    """
    if behind.layout != 'NLC':
        return boundary_of_map(x.shape, behind.layout)
    prefix = behind.prefix if given.prefix == before.prefix else 0
    tokens = x.shape[1] - prefix
    if behind.grid == before.grid:
        rows, columns = given.grid
    else:
        rows = max(1, round(given.grid[0] * behind.grid[0] / before.grid[0]))
        columns = tokens // rows
    if rows * columns != tokens:
        raise ValueError(f'{tokens} tokens do not form a grid')
    return Boundary(x.shape[2], (rows, columns), 'NLC', prefix)


def _why(leg: Leg, position: int, given: Boundary, own: Boundary, reason: str) -> str:
    return (
        f'{leg} does not run here: position {position} gets {given}, its own network has {own} there ({reason}); '
        f'try resample=True, or a leg that starts elsewhere'
    )
