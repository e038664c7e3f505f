"""The adapter that makes a reassembled network an anchor: one line through all its blocks and joins."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..anchors.anchor import Anchor, Source
from ..anchors.network_line import Stage
from ..saving.anchor_rows import describe_anchor
from .config_name import REASSEMBLED
from .reassembled import Reassembled


class ReassembledAnchor(Anchor):
    """A reassembled network as a line of all its blocks and joins.

    Args:
        model: the network.
        name: how messages and stitches refer to it.
        args: as for `Anchor`, from `input_size` on.
        kwargs: as for `Anchor`.
    """

    def __init__(self, model: Reassembled, name: str = 'reassembled', *args: Any, **kwargs: Any) -> None:
        super().__init__(model, name, *(args or (model.input_size,)), **kwargs)

    @property
    def network(self) -> Reassembled:
        """The reassembled network."""
        assert isinstance(self.model, Reassembled)
        return self.model

    def stem(self, x: Tensor) -> Tensor:
        """The new stem, or that of the first leg's network."""
        return self.network.run_stem(x)

    def recipe(self) -> Source:
        """The arguments of `reassemble`, with a row of config.json in place of each network of the zoo."""
        net = self.network
        zoo = {
            leg.anchor: {**describe_anchor(net.part(i)).to_values(), 'name': leg.anchor}
            for i, leg in enumerate(net.plan)
        }
        return Source(REASSEMBLED, {'legs': str(net), 'zoo': list(zoo.values()), **net.options})

    def stages(self) -> list[Stage]:
        """Runs of one grid, width and layout; a join or a downsampling that opens one is its entry."""
        net, boundaries = self.network, self.network.boundaries
        parts = [net.part(i) for i in range(len(net.plan))]
        entries = {id(stage.entry) for part in parts for stage in part.stages() if stage.entry is not None}
        entries |= {id(join) for join in net.seams}
        runs: list[list[nn.Module]] = []
        for position, module in enumerate(net.line()):
            if position == 0 or boundaries[position + 1] != boundaries[position]:
                runs.append([])
            runs[-1].append(module)
        return [Stage(run[1:], run[0]) if len(run) > 1 and id(run[0]) in entries else Stage(run) for run in runs]

    def head(self, x: Tensor) -> Tensor:
        """The new head, or that of the last leg's network."""
        return self.network.run_head(x)

    def clear_caches(self) -> None:
        """Drops the caches of the legs."""
        for i in range(len(self.network.plan)):
            self.network.part(i).clear_caches()

    def pretrained_part(self) -> nn.Module:
        """The legs; joins, a new stem and a new head have not been trained before."""
        return self.network.legs

    def freeze(self, head: bool = True) -> None:
        """Frozen-tuning: only joins, head and a new stem train, whatever `head` says."""
        self.network.freeze_blocks()

    def layout_at(self, position: int) -> tuple[str, int]:
        """Layout and prefix at a position, which change along the line."""
        boundary = self.network.boundaries[position]
        return boundary.layout, boundary.prefix

    def is_grid_bound(self, position: int, module: nn.Module) -> bool:
        """As in the network that the module comes from."""
        first, net = 0, self.network
        for i, leg in enumerate(net.plan):
            part = net.part(i)
            start, stop, _ = slice(leg.start, leg.stop).indices(len(part.line()))
            first += i > 0  # the join
            if first <= position < first + stop - start:
                return part.is_grid_bound(start + position - first, module)
            first += stop - start
        return False
