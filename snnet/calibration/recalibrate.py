"""Measures BatchNorm statistics for every stitch, and keeps them where they help."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..budget.record import RESULTS, Record
from ..errors import SnnetError
from ..net.part_tree import build_part_tree, parts_of
from ..net.stitch_statistics import Statistics, StatisticsGroup, batch_norms
from ..net.stitchable_net import StitchableNet
from ..utils.whole_number import whole_number
from .choose_shares import ShareJudge
from .chosen_statistics import combined, log_choices
from .measure_statistics import StatisticsMeter
from .recalibration_images import RecalibrationImages, gather_images

SHARES = (0.0, 0.1, 0.3, 0.5, 1.0)
"""How much of its own statistics a stitch may use; the anchors' statistics are the rest."""


def recalibrate(
    net: StitchableNet,
    batches: Iterable[Tensor | Sequence[Any]],
    samples: int = 1000,
    stitches: Sequence[int] | None = None,
    progress: Callable[[int, int], object] | None = None,
    all_reduce: Callable[[Tensor], object] | None = None,
    held_out: Iterable[Tensor | Sequence[Any]] | None = None,
    shares: Sequence[float] = SHARES,
) -> None:
    """Gives each stitch its own BatchNorm statistics where they help, and puts the net into eval mode.

    Before joint training, an anchor's running statistics are those of the anchor alone; after it, they are a mixture of
    all stitches. Neither is what flows through a stitch. Here each BatchNorm gets the exact mean and unbiased variance
    of its inputs over some images, while the BatchNorms before it already normalize with their new statistics. This is
    what a stitch sees in eval mode. Up to rounding, it does not depend on how images are split into batches or ranks.

    Exact statistics can also do harm, especially to an anchor: an EfficientNet-Lite0 lost 12 points
    (docs/results/recalibration.md). So each stitch tries several mixtures of the anchors' statistics and its own on
    images that the statistics did not see, and changes only where it gets more of them right, by more than one standard
    error of the difference (an anchor by more than two). The log, `net.statistics.shares` and the records
    (`recalibrated`) say what was kept.

    The statistics are used in eval mode by `net(x)`, `net(x, stitch=i)`, evaluation and `extract`, and are saved with
    the net. They belong to these weights: train mode, `load_state_dict` and any other change of a parameter in place
    take them away, with a warning. No other thread may run the net meanwhile.

    Args:
        net: a net with BatchNorm in its anchors.
        batches: training images (n, C, H, W), or pairs of images and classes (n,) or shares of classes (n, classes),
            augmented as in training, because the weights fit activations with those statistics.
        samples: how many images to use; if there are fewer, those are used, with a warning. Without `held_out`, every
            other one is set aside to judge by. Memory holds the features of the measured ones at about three positions
            (4 GB for 1,000 images of 224 pixels in a ResNet-50).
        stitches: ids; by default all but those with parameters of their own, which were fitted to the statistics that
            they have. The others keep what they have.
        progress: called with the number of images that went through a part, and of how many in all.
        all_reduce: sums a tensor over ranks in place; `samples` then counts the images of this rank.
        held_out: other images to judge by, up to `samples` of them, prepared as for evaluation. Where images come
            without classes, the answers of the largest anchor, as it is now, stand in for them.
        shares: shares of a stitch's own statistics to try, from 0 to 1. A single one is taken without judging,
            and all images are measured.

    Raises:
        SnnetError: no BatchNorm, no images, shares out of range, features or logits that are not finite, or a stitch
            that has parameters of its own.
        UnknownStitch: no such id.
    """
    samples = _checked_samples(net, samples, shares)
    ids = _chosen(net, stitches)
    net.eval()
    net.known.verified(net, thorough=True)  # a stitch that is not recalibrated keeps what it has
    with torch.inference_mode(False), torch.no_grad():
        images = gather_images(net, batches, held_out, samples, len(shares) > 1, all_reduce)
        work = _Recalibration(net, ids, images, shares, progress, all_reduce)
        if len(shares) == 1:
            work.mix_in(shares[0])
        else:
            work.choose(shares)


def _checked_samples(net: StitchableNet, samples: int, shares: Sequence[float]) -> int:
    """The number of images as an int, after a check of everything that was asked for."""
    if not batch_norms(net):
        raise SnnetError(f'there is nothing to recalibrate: no anchor of {net.title} has BatchNorm')
    samples = whole_number('samples', samples)
    if samples < 1:
        raise SnnetError(f'at least one image is needed to recalibrate, but samples={samples} was given')
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise SnnetError(f'shares are one or more numbers from 0 to 1, not {list(shares)}')
    return samples


class _Recalibration:
    """The steps of `recalibrate`: measures statistics and mixes one share of them in, or chooses shares."""

    def __init__(
        self,
        net: StitchableNet,
        ids: Sequence[int],
        images: RecalibrationImages,
        shares: Sequence[float],
        progress: Callable[[int, int], object] | None,
        all_reduce: Callable[[Tensor], object] | None,
    ) -> None:
        self.net, self.ids, self.images, self.all_reduce = net, tuple(ids), images, all_reduce
        self.records = list(net.records)
        self.progress = progress
        self.parts = _parts_in_tree(net, ids)
        self._told = 0
        measured = sum(map(len, images.measured))
        judging = sum(len(chunk) for chunk, _ in images.judging) if len(shares) > 1 else 0
        self.lengths = {stitch: sum(1 for _ in parts_of(net, stitch)) for stitch in self.ids} if judging else {}
        tried = len(shares) * sum(self.lengths.values())
        self.total = self.parts * (measured + judging) + tried * judging

    def measure(self, ids: Sequence[int]) -> Statistics:
        """Exact statistics of some of the stitches; the net keeps those that it has."""
        before = self.net.statistics
        self.net.set_statistics(None)
        try:
            meter = StatisticsMeter(self.net, self.all_reduce, self._tell)
            values = meter.measure(build_part_tree(self.net, ids), self.images.measured)
        finally:
            self.net.set_statistics(before)
        return Statistics(self.net, values, [StatisticsGroup(1.0, tuple(ids))], self.images.measured_on)

    def mix_in(self, share: float) -> None:
        """Gives all stitches the same share of statistics that are measured now."""
        measured = self.measure(self.ids)
        values = measured.mixed(self.net, self.ids, share) if share else {}
        self.net.set_statistics(
            Statistics(self.net, values, [StatisticsGroup(share, self.ids)], self.images.measured_on)
        )
        _keep_accuracies(self.net, self.records, self.ids)

    def choose(self, shares: Sequence[float]) -> None:
        """Gives each stitch the share of its own statistics that answers best, and logs which.

        Statistics are measured of those stitches only that they could change.
        """
        judge = ShareJudge(self.net, self.ids, self.images.judging, self.all_reduce, self._tell_judged)
        measured = self.measure(judge.open_stitches())
        choices = judge.choose(measured, shares)
        chosen = combined(self.net, measured, choices, self.images.judged_on)
        self.net.set_statistics(chosen)
        _keep_accuracies(self.net, self.records, [i for i, choice in choices.items() if choice.share is not None])
        self._tell(self.total - self._told)  # what did not have to run
        log_choices(chosen, choices)

    def _tell_judged(self, count: int, stitch: int | None) -> None:
        self._tell(count * (self.parts if stitch is None else self.lengths[stitch]))

    def _tell(self, count: int) -> None:
        self._told += count
        if self.progress is not None and count:
            self.progress(count, self.total)


def _parts_in_tree(net: StitchableNet, ids: Iterable[int]) -> int:
    """How many parts run where stitches share those that they begin with."""
    return sum(1 for _ in build_part_tree(net, ids).walk())


def _chosen(net: StitchableNet, stitches: Iterable[int] | None) -> list[int]:
    """The ids in order; those with parameters of their own are left out, or refused where they were asked for."""
    adapted = net.own_parameters.stitches if net.own_parameters else []
    if stitches is None:
        return [stitch for stitch in range(len(net.stitches)) if stitch not in adapted]
    ids = sorted({net.checked(stitch) for stitch in stitches})
    refused = [stitch for stitch in ids if stitch in adapted]
    if refused:
        raise SnnetError(
            f'stitch {refused[0]} has parameters of its own, fitted to the statistics that it has: '
            f'net.set_own_parameters(None) takes those of all stitches away, and then it can be recalibrated'
        )
    return ids


def _keep_accuracies(net: StitchableNet, records: Sequence[Record], changed: Iterable[int]) -> None:
    """Keeps the accuracies of stitches that run as before, and takes away those of the others."""
    lost = set(changed)
    unknown: dict[str, Any] = dict.fromkeys(RESULTS)
    net.records = [
        replace(before, recalibrated=now.recalibrated, **(unknown if now.stitch in lost else {}))
        for before, now in zip(records, net.records, strict=True)
    ]
