"""What comes of a choice of shares: the statistics of all stitches, and a message that says what was kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..net.stitch_statistics import Statistics, StatisticsGroup
from ..net.stitchable_net import StitchableNet
from .choose_shares import ShareChoice

_log = logging.getLogger(__name__)


def combined(net: StitchableNet, measured: Statistics, choices: Mapping[int, ShareChoice], held_out: int) -> Statistics:
    """The statistics of all stitches after a choice; stitches that were not measured keep theirs."""
    before = net.statistics
    values: dict[str, Tensor] = {}
    groups = []
    for share in sorted({choice.share for choice in choices.values() if choice.share is not None}):
        stitches = tuple(stitch for stitch, choice in choices.items() if choice.share == share)
        groups.append(StatisticsGroup(share, stitches))
        values |= measured.mixed(net, stitches, share) if share else {}
    kept = {stitch for stitch, choice in choices.items() if choice.share is None}
    for group in before.groups if before is not None else ():
        stitches = tuple(
            stitch for stitch in group.stitches if choices.get(stitch, ShareChoice(None, 0.0)).share is None
        )
        kept -= set(stitches)
        if before is not None and stitches:
            groups.append(StatisticsGroup(group.share, stitches))
            values |= before.mixed(net, stitches) if group.share else {}
    if kept:
        groups.append(StatisticsGroup(0.0, tuple(sorted(kept))))
    return Statistics(net, values, groups, measured.samples, held_out)


def log_choices(statistics: Statistics, choices: Mapping[int, ShareChoice]) -> None:
    """Logs which stitches normalize with how much of their own statistics, and what that brings."""
    changed = {stitch: choice for stitch, choice in choices.items() if choice.share is not None}
    gain = math.fsum(choice.gain for choice in changed.values()) / max(1, len(changed))
    _log.info(
        'recalibrated on %d images, judged on %d others: %d of %d stitches change (%+.1f points of top-1 on average), '
        'the others keep what they have',
        statistics.samples, statistics.held_out, len(changed), len(choices), gain,
    )  # fmt: skip
    for group in statistics.groups:
        listed = [stitch for stitch in group.stitches if stitch in choices]
        if listed:
            _log.info('share %g of own BatchNorm statistics: stitches %s', group.share, _ranges(listed))


def _ranges(ids: Sequence[int]) -> str:
    """Ids as text, with consecutive ones as ranges: 0-2,24."""
    runs: list[list[int]] = []
    for stitch in sorted(ids):
        if runs and stitch == runs[-1][1] + 1:
            runs[-1][1] = stitch
        else:
            runs.append([stitch, stitch])
    return ','.join(str(first) if first == last else f'{first}-{last}' for first, last in runs)
