"""How much of their own BatchNorm statistics stitches should use, judged on images that the statistics did not see."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..net.shared_prefixes import all_logits
from ..net.stitch_statistics import Statistics, StatisticsGroup
from ..net.stitchable_net import StitchableNet

_log = logging.getLogger(__name__)
_ERRORS = 1.0
"""Standard errors by which a stitch must gain: few, because the statistics that it has are not its own."""
_ANCHOR_ERRORS = 2.0
"""Standard errors by which an anchor must gain: more, because its weights were trained with its present statistics."""


@dataclass(frozen=True)
class ShareChoice:
    """What was chosen for a stitch.

    Attributes:
        share: of its own statistics; None keeps what the stitch has.
        gain: percentage points of top-1 on the held-out images, over what the stitch has.
    """

    share: float | None
    gain: float


def choose_shares(
    net: StitchableNet,
    measured: Statistics,
    shares: Sequence[float],
    held_out: Sequence[tuple[Tensor, Tensor]],
    all_reduce: Callable[[Tensor], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[int, ShareChoice]:
    """The share of its own statistics that works best for each stitch.

    A stitch changes only where it gets more held-out images right than it does now, by more than one standard error
    of the difference (an anchor by more than two). Of such shares, the one with the highest gain minus its error wins.

    Args:
        net: as it is now, in eval mode; its statistics are put back.
        measured: the stitches' own statistics, one group of share 1.
        shares: the shares to try, from 0 (the anchors' statistics) to 1.
        held_out: chunks of images (n, C, H, W) and answers: classes (n,) or shares of classes (n, classes).
        all_reduce: sums a tensor over ranks in place.
        progress: called with the number of images that went through all stitches.
    """
    ids, before = measured.stitches, net.statistics
    tried = [share for share in shares if share > 0 or before is not None]  # without statistics, 0 is what there is
    now = _scores(net, ids, held_out, progress)  # (stitches, images)
    gains: list[Tensor] = []
    for share in tried:
        groups = [StatisticsGroup(share, tuple(ids))]
        values = measured.mixed(net, ids, share) if share else {}
        net.set_statistics(Statistics(net, values, groups, measured.samples))
        gains.append(_scores(net, ids, held_out, progress) - now)
    net.set_statistics(before)
    if not gains:
        return {stitch: ShareChoice(None, 0.0) for stitch in ids}
    gain = torch.stack(gains)  # (shares, stitches, images)
    sums = torch.stack([gain.sum(-1), gain.square().sum(-1), torch.ones_like(gain).sum(-1)])
    sums = sums.to(next(net.parameters()).device)
    if all_reduce is not None:
        all_reduce(sums)
    total, squares, count = sums.cpu()
    mean = total / count
    error = squares.sqrt() / count  # of the mean if the true gain is zero: for hits, sqrt(changed answers) / images
    required = torch.tensor([_ANCHOR_ERRORS if net.records[stitch].anchor else _ERRORS for stitch in ids])
    margin = mean - required.double() * error  # (shares, stitches)
    choices = {}
    for column, stitch in enumerate(ids):
        row = int(margin[:, column].argmax())
        kept = bool(margin[row, column] > 0)
        choices[stitch] = ShareChoice(tried[row], 100 * float(mean[row, column])) if kept else ShareChoice(None, 0.0)
    return choices


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


@torch.no_grad()
def _scores(
    net: StitchableNet,
    ids: Sequence[int],
    held_out: Sequence[tuple[Tensor, Tensor]],
    progress: Callable[[int], object] | None,
) -> Tensor:
    """Share of each answer that each stitch gets right (stitches, images): 0 or 1 where answers are classes."""
    rows = {stitch: row for row, stitch in enumerate(ids)}
    parts = []
    for images, answers in held_out:
        part = torch.zeros(len(ids), len(images), dtype=torch.float64)
        for stitch, logits in all_logits(net, images, ids):
            part[rows[stitch]] = _right(logits, answers).cpu()
        parts.append(part)
        if progress is not None:
            progress(len(images))
    return torch.cat(parts, dim=1)


def _right(logits: Tensor, answers: Tensor) -> Tensor:
    """Which answers the logits (n, classes) give: (n,), float64."""
    found = logits.argmax(1)
    if answers.ndim == 1:
        return (found == answers).double()
    return answers.gather(1, found[:, None]).squeeze(1).double()


def _ranges(ids: Sequence[int]) -> str:
    """Ids as text, with consecutive ones as ranges: 0-2,24."""
    runs: list[list[int]] = []
    for stitch in sorted(ids):
        if runs and stitch == runs[-1][1] + 1:
            runs[-1][1] = stitch
        else:
            runs.append([stitch, stitch])
    return ','.join(str(first) if first == last else f'{first}-{last}' for first, last in runs)
