"""What one pass through a line finds out: boundaries, and which parameters each part uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .anchor import Boundary


@dataclass(frozen=True)
class Survey:
    """What one pass through a line measures.

    Attributes:
        boundaries: one a position, from 0 (after the stem) to the last (before the head).
        stem, modules, head, published_head: names of the parameters that reach each part's output.
    """

    boundaries: tuple[Boundary, ...]
    stem: frozenset[str]
    modules: tuple[frozenset[str], ...]
    head: frozenset[str]
    published_head: frozenset[str]


def used_parameters(output: Tensor, names: dict[int, str]) -> frozenset[str]:
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
