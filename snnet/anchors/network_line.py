"""A network as a line: stem -> [entry, block, block, ...] ... -> head, with numbered positions between the modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .pre_logits import pre_logits as pre_logits_of
from .weightless import meta_tensors

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Stage:
    """A run of blocks on one grid.

    Attributes:
        blocks: the modules that can be cut between.
        entry: the downsampling that opens the stage; None where the first block does it itself.
    """

    blocks: Sequence[nn.Module]
    entry: nn.Module | None = None


class NetworkLine(nn.Module):
    """The parts of a network in the order they run: a stem, stages of blocks, and a head.

    `Anchor` is the line that can be run, measured and cut; the adapter of a family says what the parts are. The model
    keeps its parameter names (`model.blocks.3...`). Its modules are looked up each time, so a block may be replaced.

    Args:
        model: the network, untouched.
        name: what messages and stitches call it.
        input_size: channels, height and width of an input image.
    """

    layout: str = 'NCHW'
    has_grid_bound_modules = False
    """Whether some modules may run only on the grid that they were made for (see `is_grid_bound`)."""

    def __init__(self, model: nn.Module, name: str, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.model: Any = model  # Any: adapters reach into networks of many classes
        self.name = name
        self.input_size = input_size

    # The four answers of an adapter (layout is an attribute), and two that have a default.

    def stem(self, x: Tensor) -> Tensor:
        """Image (N, C, H, W), normalized as the network was trained, to the features at position 0."""
        raise NotImplementedError

    def stages(self) -> list[Stage]:
        """The stages, looked up in the model now."""
        raise NotImplementedError

    def head(self, x: Tensor) -> Tensor:
        """Features at the last position to logits (N, classes)."""
        raise NotImplementedError

    def published_head(self, x: Tensor) -> Tensor:
        """The head as the published implementation ran it behind a stitch layer."""
        return self.head(x)

    def tail(self, x: Tensor) -> Tensor:
        """Features at the last position to what timm's `forward_features` gives; a subclass adds its final norm."""
        return x

    def published_tail(self, x: Tensor) -> Tensor:
        """The tail as the published implementation ran it behind a stitch layer."""
        return self.tail(x)

    def classify(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What the tail gives to logits (N, classes), or to what goes into the classifier.

        Raises:
            SnnetError: `pre_logits`, and the network does not say which module its classifier is.
        """
        return pre_logits_of(self.model, self.head, x) if pre_logits else self.head(x)

    def stitch_stages(self) -> range:
        """Stages that are stitched: all but the last, or the only one (SN-Net, section 4.1)."""
        return range(max(1, len(self.stages()) - 1))

    def is_grid_bound(self, position: int, module: nn.Module) -> bool:
        """Whether the module behind a position fails on other grids, or silently computes something else there."""
        return False

    # What follows from them.

    @property
    def prefix(self) -> int:
        """Number of prefix tokens in a token sequence."""
        return int(getattr(self.model, 'num_prefix_tokens', 0)) if self.layout == 'NLC' else 0

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return int(self.model.num_classes)

    def layout_at(self, position: int) -> tuple[str, int]:
        """Layout and number of prefix tokens at a position; the same everywhere unless a subclass says otherwise."""
        return self.layout, self.prefix

    def line(self) -> list[nn.Module]:
        """Entries and blocks in the order they run; position p lies before module p."""
        return [m for stage in self.stages() for m in (stage.entry, *stage.blocks) if m is not None]

    def blocks(self) -> list[range]:
        """For each stage, the indices of its blocks in `line()`."""
        spans, at = [], 0
        for stage in self.stages():
            first = at + (stage.entry is not None)
            at = first + len(stage.blocks)
            spans.append(range(first, at))
        return spans

    def edge_modules(self) -> list[nn.Module]:
        """Stem and head, where they are modules that may share parts with blocks."""
        return []

    def duplicate(self, memo: dict[int, Any] | None = None) -> Self:
        """A deep copy; `memo` maps ids of objects to their replacements, as in `copy.deepcopy`."""
        self.clear_caches()
        return copy.deepcopy(self, memo)

    def clear_caches(self) -> None:
        """Drops what the model has derived from its weights and would keep using after they change."""

    def weightless_copy(self) -> Self:
        """A copy in eval mode on torch's meta device: shapes without numbers."""
        return self.duplicate(meta_tensors(self)).eval()
