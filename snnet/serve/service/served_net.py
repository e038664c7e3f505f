"""A net with everything that answering requests with it needs: tables, choices, labels, preprocessing."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...budget.latency_table import LatencyTable
from ...budget.record import Record, accuracy
from ...data.transforms import clean_transform
from ...net.compile_blocks import compile_blocks
from ...net.preprocessing import preprocessing
from ...net.stitchable_net import StitchableNet
from ...saving.hub import locate
from ..stitch_choices import Choice, Choices
from .demand import Demand
from .refusal import Refusal
from .ticket import Apart

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class ServedNet:
    """A net that answers requests.

    Attributes:
        name: what clients call it.
        folder: where it was loaded from.
        net: the net, in eval mode on its device.
        tables: latency tables that hold here; empty until they are loaded or measured (see `use_tables`).
        version: counts the nets that had this name.
        process: computes in its place, where it has one.
        records: of each stitch, by id.
        transform: PIL image to (C, H, W), normalized.
    """

    name: str
    folder: Path
    net: StitchableNet
    version: int = 1
    tables: Sequence[LatencyTable] = ()
    process: Apart | None = None
    records: list[Record] = field(init=False)
    transform: Any = field(init=False)

    def __post_init__(self) -> None:
        self.records = list(self.net.records)
        self.transform = clean_transform(self.net)
        weight = next(self.net.parameters())
        self._device, self._dtype = weight.device, weight.dtype

    @property
    def evaluated(self) -> bool:
        """Whether the accuracy of any stitch is known."""
        return any(accuracy(record) > -math.inf for record in self.records)

    @cached_property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of a prepared image."""
        return self.net.input_size

    @cached_property
    def labels(self) -> list[str]:
        """The name of each class; its index where the net keeps no names."""
        names = getattr(self.net, 'class_names', None)
        return [str(name) for name in names] if names else [str(i) for i in range(self.net.num_classes)]

    @cached_property
    def preparation(self) -> dict[str, Any]:
        """How images are prepared, in timm's words."""
        return preprocessing(self.net)

    def candidates(self) -> list[Record]:
        """Records that the load may choose from, with a stand-in for accuracies where none is known.

        Without accuracies only the anchors answer, because a stitch that was never evaluated may be useless, and the
        larger one counts as the better one.
        """
        if self.evaluated:
            return [record for record in self.records if accuracy(record) > -math.inf]
        anchors = sorted((r for r in self.records if r.anchor), key=lambda record: record.flops or 0)
        return [replace(record, top1=float(rank)) for rank, record in enumerate(anchors)]

    def use_tables(self, tables: Sequence[LatencyTable]) -> None:
        """Uses latency tables, all of the setup in which the net runs.

        Raises:
            SnnetError: no stitch has both an accuracy and a latency.
        """
        self.choices = Choices.of(self.candidates(), tables)
        self.tables = tuple(tables)
        self._restricted: dict[Hashable, Choices] = {}

    def queue_of(self, demand: Demand) -> tuple[Hashable, Choices]:
        """The name of the queue that suits a demand, and the stitches that may answer in it.

        Raises:
            Refusal: no stitch meets the demand.
        """
        own = (self.name, self.version)
        if demand.min_top1 > 0 and not self.evaluated:
            raise Refusal('invalid', f"no accuracy of net '{self.name}' is known, so min_top1 cannot be promised")
        name: tuple[Hashable, ...] = (*own, 'any')
        choices = self.choices
        if demand.stitch is not None:
            name = (*own, 'stitch', demand.stitch)
            choices = self._restricted.get(name) or self._only(demand.stitch)
        elif demand.flops is not None:
            within = self._within(demand.flops)
            name = (*own, 'flops', len(within))
            choices = self._restricted.get(name) or Choices(within)
        if name[2] != 'any':
            self._restricted[name] = choices  # at most one per stitch, and one per limit of FLOPs that matters
        if choices.floor(demand.min_top1) is None:
            best = max(choice.top1 for choice in choices.choices)
            raise Refusal(
                'invalid', f'min_top1 is {demand.min_top1:g} %, but the best stitch that may answer has {best:g} %'
            )
        fastest = 1000 * choices.fast[0][1]
        if demand.deadline_ms < fastest / 4:  # the most that measured times correct the tables by
            raise Refusal(
                'invalid',
                f'no stitch that may answer meets a deadline of {demand.deadline_ms:g} ms: the fastest takes '
                f'{fastest:.3g} ms',
            )
        return name, choices

    @torch.inference_mode()
    def run(self, images: Sequence[Tensor], stitch: int) -> np.ndarray:
        """Prepared images (C, H, W) to logits (N, classes), as float32."""
        batch = torch.stack([*images]).to(self._device, self._dtype)
        logits: np.ndarray = self.net(batch, stitch=stitch).float().cpu().numpy()
        return logits

    def warm_up(self, stitches: Sequence[int], sizes: Iterable[int], seconds: float = math.inf) -> None:
        """Runs stitches once with batches of some sizes, because first calls take longer.

        Args:
            stitches: ids.
            sizes: how many images.
            seconds: no call begins after so many.
        """
        image, end = torch.zeros(self.input_size), time.monotonic() + seconds
        for size in sizes:
            for stitch in stitches:
                if time.monotonic() < end:
                    self.run([image] * size, stitch)

    def _within(self, flops: float) -> list[Choice]:
        cost = {record.stitch: record.flops or 0 for record in self.records}
        within = [choice for choice in self.choices.choices if cost[choice.stitch] <= flops]
        if not within:
            least = min(cost[choice.stitch] for choice in self.choices.choices)
            raise Refusal(
                'invalid', f'no stitch that answers needs at most {flops:g} flops: the cheapest needs {least:g}'
            )
        return within

    def _only(self, stitch: int) -> Choices:
        """One stitch alone; without a measured time, it gets that of the stitch with the nearest FLOPs, to scale."""
        if not 0 <= stitch < len(self.records):
            raise Refusal('invalid', f'stitch ids are 0 to {len(self.records) - 1}, not {stitch}')
        record = self.records[stitch]
        top1 = record.top1 if record.top1 is not None else 0.0
        if all(stitch in table.rows for table in self.tables):
            return Choices.of([replace(record, top1=top1)], self.tables)
        flops = max(1, record.flops or 1)
        cost = {choice: max(1, self.records[choice.stitch].flops or 1) for choice in self.choices.choices}
        near = min(cost, key=lambda choice: abs(math.log(cost[choice] / flops)))
        scale = flops / cost[near]
        return Choices([near._replace(stitch=stitch, top1=top1, seconds=tuple(scale * s for s in near.seconds))])


def load_served_net(
    name: str, source: str, *, device: str, dtype: str = 'float32', compiled: bool = False, version: int = 1
) -> ServedNet:
    """Loads a net to serve.

    Args:
        name: what clients call it.
        source: its folder, or its id on the Hub.
        device: such as 'cpu' or 'cuda'.
        dtype: type of the weights.
        compiled: compile the blocks.
        version: number of the net among those of its name.

    Raises:
        SnnetError: there is no net, or its files are damaged.
    """
    folder = locate(source)
    net = StitchableNet.from_pretrained(folder).to(device, getattr(torch, dtype)).eval()
    net.requires_grad_(False)
    if compiled:
        compile_blocks(net)
    return ServedNet(name, folder, net, version)
