"""`snnet serve` with a net that sleeps for as long as its made-up table says, so that only the service needs a core.

On a machine with two cores, a net that computes leaves one for the service, its client, and whatever else runs.
`benchmarks/service.py --sleep` starts it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from snnet.budget.latency_table import Latency, LatencyTable
from snnet.cli.main import main
from snnet.net.hardware import setup_of
from snnet.serve import build_service
from snnet.serve.service import service
from snnet.serve.service.served_net import ServedNet

BATCHES = (1, 2, 4, 8, 16)


def seconds(served: ServedNet, stitch: int, batch: int) -> float:
    """How long a batch takes: 3 ms for one image of the cheapest stitch, 20 ms for sixteen, more with FLOPs."""
    costs = [record.flops or 1 for record in served.records]
    return (0.002 + 0.00115 * batch) * (0.4 + 0.6 * costs[stitch] / min(costs))


def tables(served: ServedNet, *_: Any) -> list[LatencyTable]:
    """What stands in for a measurement."""
    found = []
    for batch in BATCHES:
        times = {record.stitch: 1000 * seconds(served, record.stitch, batch) for record in served.records}
        rows = {stitch: Latency(ms, ms, 1.05 * ms, 1000) for stitch, ms in times.items()}
        found.append(LatencyTable(setup_of(served.net), batch, None, rows))
    return found


class SleepingNet:
    """Stands in for the process in which a net computes."""

    def __init__(self, _: Any, served: ServedNet) -> None:
        self._served = served

    def __call__(self, images: Sequence[Tensor], stitch: int) -> np.ndarray:
        """Sleeps, and returns zeros."""
        time.sleep(seconds(self._served, stitch, len(images)))
        return np.zeros((len(images), self._served.net.num_classes), np.float32)

    def start(self) -> None:
        """Does nothing."""

    def interrupt(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


if __name__ == '__main__':
    changed: Any = service
    changed.measure_tables = tables
    changed = build_service
    changed._process_of = SleepingNet
    sys.exit(main())
