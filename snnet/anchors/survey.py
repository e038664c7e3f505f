"""One pass through a line measures its boundaries and which parameters each part uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..errors import CannotStitch, reason_of
from .boundary import Boundary, boundary_of
from .network_line import NetworkLine

_SMALL = 1_000_000
"""Parameters below which the arithmetic of a network takes less time than torch's bookkeeping on the meta device."""


@dataclass(frozen=True)
class Survey:
    """What one pass through a line measures.

    Attributes:
        boundaries: one per position, from 0 (after the stem) to the last (before the head).
        stem, modules, head, published_head: names of the parameters that reach each part's output.
    """

    boundaries: tuple[Boundary, ...]
    stem: frozenset[str]
    modules: tuple[frozenset[str], ...]
    head: frozenset[str]
    published_head: frozenset[str]


def survey_line(line: NetworkLine) -> Survey:
    """Measures a copy on the meta device, or a real copy where that fails or where the network is small.

    Raises:
        CannotStitch: the network does not run as a line on images of its input size.
    """
    return _measured_on_copy(line, lambda twin: _measure(line, twin))


def survey_new_head(line: NetworkLine, known: Survey) -> Survey:
    """What was measured of a line, with the parameters of its head as they are now.

    Only the head runs, so this also works for a line from which all else was cut out.

    Raises:
        CannotStitch: the head does not run.
    """
    return _measured_on_copy(line, lambda twin: _with_head_of(twin, known))


def _measured_on_copy(line: NetworkLine, measure: Callable[[NetworkLine], Survey]) -> Survey:
    weightless, real = line.weightless_copy, partial(_trainable_copy, line)
    small = sum(parameter.numel() for parameter in line.model.parameters()) < _SMALL
    twins: list[Callable[[], NetworkLine]] = [real, weightless] if small else [weightless, real]
    failures: dict[Callable[[], NetworkLine], Exception] = {}
    with torch.inference_mode(False), torch.enable_grad():
        for twin in twins:
            try:
                return measure(twin())
            except Exception as error:  # an AttributeError must not leave a property: nn.Module would hide it
                failures[twin] = error
    failure = failures[real]  # tensors without numbers fail for reasons of their own
    size = 'x'.join(map(str, line.input_size))
    raise CannotStitch(f'{line.name} does not run as a line on an image of {size}: {reason_of(failure)}') from failure


def _measure(line: NetworkLine, twin: NetworkLine) -> Survey:
    """Runs a copy part by part, in eval mode."""
    names = {id(p): name for name, p in twin.model.named_parameters()}
    weight = next(twin.parameters())
    x = torch.zeros(1, *line.input_size, device=weight.device, dtype=weight.dtype)
    boundaries, used = [], []
    parts: list[Callable[[Tensor], Tensor]] = [twin.stem, *twin.line()]
    for position, part in enumerate(parts):
        x = part(x.detach().requires_grad_().clone())  # a copy, because a part may write into its input
        boundaries.append(_boundary_at(line, position, x))
        used.append(_used_parameters(x, names))
    return _with_head_of(twin, Survey(tuple(boundaries), used[0], tuple(used[1:]), frozenset(), frozenset()))


def _with_head_of(twin: NetworkLine, known: Survey) -> Survey:
    names = {id(p): name for name, p in twin.model.named_parameters()}
    weight = next(twin.parameters(), torch.empty(0))
    x = torch.zeros(1, *known.boundaries[-1].shape, device=weight.device, dtype=weight.dtype, requires_grad=True)
    heads = [_used_parameters(head(x.clone()), names) for head in (twin.head, twin.published_head)]
    return replace(known, head=heads[0], published_head=heads[1])


def _trainable_copy(line: NetworkLine) -> NetworkLine:
    twin = line.duplicate().eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # of a frozen anchor, too
    return twin


def _boundary_at(line: NetworkLine, position: int, x: Tensor) -> Boundary:
    layout, prefix = line.layout_at(position)
    found = boundary_of(tuple(x.shape), layout, prefix, line.input_size)
    if found is None:
        height, width = line.input_size[1:]
        raise CannotStitch(
            f'{line.name}: {x.shape[1] - prefix} tokens do not form a grid shaped like {height}x{width} pixels'
        )
    return found


def _used_parameters(output: Tensor, names: dict[int, str]) -> frozenset[str]:
    """Names of the parameters that autograd reaches from `output`."""
    return frozenset(names[id(p)] for p in _leaves(output) if id(p) in names)


def _leaves(output: Tensor) -> Iterator[Tensor]:
    todo, seen = [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, 'variable'):
            yield node.variable
        todo.extend(child for child, _ in node.next_functions)
