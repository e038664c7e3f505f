"""Any network as a line, from a recorded run: no adapter needed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ...errors import CannotStitch
from ..anchor import Anchor, Source
from ..attention_bias import clear_attention_bias_caches
from ..network_line import Stage
from .line_plan import LinePlan, Size


class TracedAnchor(Anchor):
    """A line found in the network's own dataflow.

    Stages are runs of blocks on one grid. A module between them that changes grid or width is the entry of the next.

    Args:
        model, name, input_size, source, official: as for `Anchor`.

    Raises:
        CannotStitch: features do not pass through single tensors, or their values decide what is computed.
    """

    has_grid_bound_modules = True

    def __init__(
        self, model: nn.Module, name: str, input_size: Size, source: Source | None = None, official: bool = False
    ) -> None:
        super().__init__(model, name, input_size, source, official)
        with torch.inference_mode(False), torch.enable_grad():
            try:
                plan = LinePlan(model, name, input_size)
            except CannotStitch as error:
                raise CannotStitch(f'{name} cannot be split into a sequence of blocks: {error}') from error
        self._grid_bound: list[bool] = []
        self._parts = tuple(plan.parts)
        self._entries, self._layouts, self._classes = plan.entries, plan.layouts, plan.classes

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        noted = getattr(self.model, 'num_classes', None)
        return self._classes if noted is None else int(noted)

    def stem(self, x: Tensor) -> Tensor:
        """Everything before the first block."""
        out: Tensor = self._module(0)(x)
        return out

    def stages(self) -> list[Stage]:
        """One stage per grid."""
        stages: list[Stage] = []
        entry, grid = None, None
        for i, (_, after) in enumerate(zip(self._layouts, self._layouts[1:], strict=False)):
            module = self._module(i + 1)
            if self._entries[i]:
                entry = module
                continue
            if entry is not None or after.grid != grid:
                stages.append(Stage([], entry))
            stages[-1].blocks.append(module)  # type: ignore[attr-defined]
            entry, grid = None, after.grid
        return stages

    def head(self, x: Tensor) -> Tensor:
        """Everything after the last block."""
        out: Tensor = self._module(-1)(x)
        return out

    def edge_modules(self) -> list[nn.Module]:
        """Stem and head."""
        return [self._module(0), self._module(-1)]

    def _module(self, index: int) -> nn.Module:
        part = self._parts[index]
        found: nn.Module = self.model.get_submodule(part) if isinstance(part, str) else part
        return found

    def clear_caches(self) -> None:
        """Drops cached attention biases."""
        clear_attention_bias_caches(self.model)

    def layout_at(self, position: int) -> tuple[str, int]:
        """Layout and prefix at a position."""
        return self._layouts[position].layout, self._layouts[position].prefix

    def is_grid_bound(self, position: int, module: nn.Module) -> bool:
        """Measured once: whether it fails on a grid of twice or half the height."""
        if not self._grid_bound:
            twin = self.weightless_copy()
            like = next(twin.parameters())
            for before, part in zip(self._layouts, twin.line(), strict=False):
                heights = {2 * before.grid[0], -(-before.grid[0] // 2)}
                shapes = [replace(before, grid=(height, before.grid[1])).shape for height in heights]
                self._grid_bound.append(not all(_runs(part, shape, like) for shape in shapes))
        return self._grid_bound[position]


def _runs(part: nn.Module, shape: tuple[int, ...], like: Tensor) -> bool:
    try:
        with torch.no_grad():
            part(torch.zeros(1, *shape, device=like.device, dtype=like.dtype))
    except Exception:  # whatever a module raises on a grid that it was not made for
        return False
    return True
