"""A copy of a line that holds only what one leg needs."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn

from ..errors import SnnetError
from .network_line import NetworkLine

_Line = TypeVar('_Line', bound=NetworkLine)


class Absent(nn.Module):
    """Stands where a module was cut out; running it raises `SnnetError`.

    Args:
        name: path of the module that stood here.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Refuses to run."""
        raise SnnetError(f'{self.name} was cut out of this network: it runs only the stitch it was extracted for')


def cut_copy(whole: _Line, start: int | None, stop: int | None, used: frozenset[str]) -> _Line:
    """A copy that holds only what runs from position `start` to position `stop`; positions stay as they are.

    Args:
        whole: the line, left as it is.
        start: a position, or None for the image.
        stop: a position, or None for the logits.
        used: names (within the model) of the parameters that take part.
    """
    twin = whole.duplicate(_replacements(whole, start, stop, used))
    for name in [name for name, _ in twin.model.named_parameters(remove_duplicate=False) if name not in used]:
        owner, _, leaf = name.rpartition('.')
        twin.model.get_submodule(owner).register_parameter(leaf, None)
    return twin


def _replacements(whole: NetworkLine, start: int | None, stop: int | None, used: frozenset[str]) -> dict[int, Any]:
    """The modules that the leg does not need, by id, each with an `Absent` in its place."""
    line = whole.line()
    stem_and_head = whole.edge_modules()
    edges = [m for m, runs in zip(stem_and_head, (start is None, stop is None), strict=False) if runs]
    needed = {id(m) for part in (*line[start:stop], *edges) for m in part.modules()}
    in_blocks = {id(m) for block in line for m in block.modules()}
    found: dict[int, Any] = {}
    for name, module in whole.model.named_modules():
        if id(module) in in_blocks:
            drop = id(module) not in needed
        else:  # of stem and head: has parameters, needs none of them, and contains no block
            own = {f'{name}.{p}' for p, _ in module.named_parameters()}
            drop = bool(own) and not own & used and not any(id(m) in in_blocks for m in module.modules())
        if drop:
            found[id(module)] = Absent(name)
    return found
