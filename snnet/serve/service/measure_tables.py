"""Latency tables for a service: those that hold here, or a quick measurement at the start."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch

from ...budget.frontier import frontier
from ...budget.latency_table import LatencyTable
from ...net.hardware import setup_of
from ...profiling.profile import profile
from .served_net import ServedNet

_log = logging.getLogger(__name__)
CALLS = 6
"""Calls of a stitch that measuring it with one batch size takes at least, first calls included."""
FEWEST = 3
"""Fewest stitches that are measured, if there are as many."""


def tables_here(served: ServedNet) -> list[LatencyTable]:
    """The latency tables of a net that hold where it runs, from small to large batches."""
    setup = setup_of(served.net)
    tables = [table for table in served.net.latency_tables if table.setup == setup]
    return sorted(tables, key=lambda table: table.batch)


def measure_tables(served: ServedNet, largest: int, seconds: float) -> list[LatencyTable]:
    """Measures what the service chooses from: the frontier of the net, or its anchors if none was evaluated.

    Where the time does not suffice, fewer stitches, evenly spread over the frontier, and fewer batch sizes are
    measured.

    Args:
        served: the net.
        largest: the largest batch.
        seconds: time limit.

    Raises:
        SnnetError: a stitch does not run.
    """
    candidates = frontier(served.candidates())
    stitches = [record.stitch for record in candidates]
    batches = [size for size in (1, 2, 4, 8, 16, 32, 64, 128) if size < largest] + [largest]
    once = _seconds(served, stitches[0]), _seconds(served, stitches[-1])
    stitches, batches = _affordable(stitches, batches, sum(once) / 2, seconds)
    _log.info(
        '%s: no latency table holds here; measuring %d stitches with batches of %s for up to %.0f s '
        '(snnet profile NET --batch-sizes %s keeps a more precise one)',
        served.name, len(stitches), ', '.join(map(str, batches)), seconds, ' '.join(map(str, batches)),
    )  # fmt: skip
    return profile(served.net, batches=batches, stitches=stitches, predict=False, minutes=seconds / 60)


def _seconds(served: ServedNet, stitch: int) -> float:
    """Seconds of a call with one image; the second one counts."""
    image = torch.zeros(served.input_size)
    for _ in range(2):
        begin = time.perf_counter()
        served.run([image], stitch)
    return time.perf_counter() - begin


def _affordable(
    stitches: Sequence[int], batches: Sequence[int], once: float, seconds: float
) -> tuple[list[int], list[int]]:
    """Returns as many stitches and batch sizes as can be measured in time, if a call takes `once` seconds an image."""
    batches = [*batches]
    while len(batches) > 2 and FEWEST * CALLS * once * sum(batches) > seconds / 2:
        batches.pop()
    each = CALLS * once * sum(batches)
    count = min(len(stitches), max(FEWEST, int(seconds / each)))
    if count >= len(stitches):
        return [*stitches], batches
    return [stitches[round(i * (len(stitches) - 1) / (count - 1))] for i in range(count)], batches
