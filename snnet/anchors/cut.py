"""A copy of an anchor that holds only what one leg needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import SnnetError

if TYPE_CHECKING:
    from .anchor import Anchor


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


def cut_copy(anchor: Anchor, start: int | None = None, stop: int | None = None) -> Anchor:
    """A copy that holds only what `anchor.run(x, start, stop)` needs; positions stay as they are."""
    used = anchor.parameter_names(start, stop)
    twin = anchor.duplicate(_replacements(anchor, start, stop, used))
    for name in [name for name, _ in twin.model.named_parameters(remove_duplicate=False) if name not in used]:
        owner, _, leaf = name.rpartition('.')
        twin.model.get_submodule(owner).register_parameter(leaf, None)
    if start is not None:
        twin.renormalize = None
    return twin


def _replacements(anchor: Anchor, start: int | None, stop: int | None, used: frozenset[str]) -> dict[int, Any]:
    """The modules that the leg does not need, by id, each with an `Absent` in its place."""
    line = anchor.line()
    stem_and_head = anchor.edge_modules()
    edges = [m for m, runs in zip(stem_and_head, (start is None, stop is None), strict=False) if runs]
    needed = {id(m) for part in (*line[start:stop], *edges) for m in part.modules()}
    in_blocks = {id(m) for block in line for m in block.modules()}
    found: dict[int, Any] = {}
    for name, module in anchor.model.named_modules():
        if id(module) in in_blocks:
            drop = id(module) not in needed
        else:  # of stem and head: has parameters, needs none of them, and contains no block
            own = {f'{name}.{p}' for p, _ in module.named_parameters()}
            drop = bool(own) and not own & used and not any(id(m) in in_blocks for m in module.modules())
        if drop:
            found[id(module)] = Absent(name)
    return found
