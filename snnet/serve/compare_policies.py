"""The same requests, answered by a controller and by services that cannot adapt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .simulation import Outcome, World, best_fixed, simulate
from .stitch_choices import Choices

STITCHES, ANCHORS, LARGEST, SMALLEST, FIXED = 'stitches', 'anchors only', 'largest', 'smallest', 'best fixed'
POLICIES = (STITCHES, ANCHORS, LARGEST, SMALLEST, FIXED)


@dataclass(frozen=True)
class PolicyOutcome:
    """What one policy did under one load.

    Attributes:
        load: requests per second, as a share of what the cheapest stitch can answer.
        rate: requests per second.
        policy: one of `POLICIES`.
        stitch: id of the stitch, if the policy runs only one.
        outcome: what became of the requests.
    """

    load: float
    rate: float
    policy: str
    stitch: int | None
    outcome: Outcome


def compare_policies(
    stitches: Choices,
    anchors: Choices | None,
    moments: np.ndarray,
    deadline: float,
    world: World,
    progress: Callable[[int], object] | None = None,
) -> list[tuple[str, int | None, Outcome]]:
    """Runs each policy on the same arrivals.

    All policies use the controller's batching, admission and order by deadline. They differ only in the stitches that
    they may choose from.

    Args:
        stitches: every stitch with known accuracy and latency.
        anchors: the anchors among them; None leaves that policy out.
        moments: (N,), times of arrival in seconds, rising.
        deadline: seconds from arrival to deadline.
        world: how long batches really take.
        progress: called with the number of requests simulated since the last call.

    Returns:
        For each policy its name, the stitch id if it runs only one, and the outcome.
    """
    largest = stitches.only(len(stitches) - 1)
    fastest = min(range(len(stitches)), key=lambda index: (stitches.choices[index].seconds[1], index))
    smallest = stitches.only(fastest)
    rows: list[tuple[str, int | None, Outcome]] = [
        (STITCHES, None, simulate(stitches, moments, deadline, world, progress))
    ]
    if anchors is not None:
        rows.append((ANCHORS, None, simulate(anchors, moments, deadline, world, progress)))
    rows.append((LARGEST, largest.choices[0].stitch, simulate(largest, moments, deadline, world, progress)))
    rows.append((SMALLEST, smallest.choices[0].stitch, simulate(smallest, moments, deadline, world, progress)))
    choice, outcome = best_fixed(stitches, moments, deadline, world, progress)
    return [*rows, (FIXED, choice.stitch, outcome)]


def outcome_table(rows: Sequence[PolicyOutcome]) -> str:
    """The outcomes as a table in plain text."""
    lines = [
        f'{"load":>5} {"req/s":>8}  {"policy":<14}{"in time %":>10}{"top-1":>8}{"effective":>10}'
        f'{"p50 ms":>9}{"p99 ms":>9}{"refused":>9}{"late":>7}{"busy %":>8}'
    ]
    for row in rows:
        o = row.outcome
        name = row.policy if row.stitch is None else f'{row.policy} {row.stitch}'
        lines.append(
            f'{row.load:>5.2f} {row.rate:>8.4g}  {name:<14}{o.attainment:>10.3f}{o.accuracy:>8.2f}{o.effective:>10.2f}'
            f'{o.p50:>9.4g}{o.p99:>9.4g}{o.refused:>9}{o.late + o.dropped:>7}{o.utilization:>8.1f}'
        )
    return '\n'.join(lines)
