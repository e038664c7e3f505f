"""The share of its own BatchNorm statistics that suits each stitch, found with as few images as the decision needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import SnnetError
from ..net.shared_prefixes import all_logits, wanted_logits
from ..net.stitch_statistics import Statistics, StatisticsGroup
from ..net.stitchable_net import StitchableNet

_ERRORS = 1.0
"""Standard errors by which a stitch must gain: few, because the statistics that it has are not its own."""
_ANCHOR_ERRORS = 2.0
"""Standard errors by which an anchor must gain: more, because its weights were trained with its present statistics."""
_PIECES = 5
"""Pieces of the images on which a stitch cannot gain; after each, shares that cannot win any more are given up."""
_TOGETHER, _APART = 32, 64
"""Images that run at a time: where stitches run them all, and where each takes some of them."""


@dataclass(frozen=True)
class ShareChoice:
    """What was chosen for a stitch.

    Attributes:
        share: of its own statistics; None keeps what the stitch has.
        gain: percentage points of top-1 on the held-out images, over what the stitch has.
    """

    share: float | None
    gain: float


@dataclass
class _Trial:
    """What is known of a share for a stitch: sums of the gain and of its square over the images that have run."""

    gain: float = 0.0
    squares: float = 0.0
    pieces: int = 0

    def bound(self, errors: float) -> float:
        """The margin that it can reach at most: the images that are left can only lower it."""
        return self.gain - errors * math.sqrt(self.squares) if self.pieces else math.inf


class ShareJudge:
    """Judges shares of their own statistics for some stitches, on images that the statistics did not see.

    A stitch changes only where it gets more held-out images right than it does now, by more than one standard error
    of the difference (an anchor by more than two). Of such shares, the one with the highest gain minus its error wins.

    A share can gain only on images that the stitch gets wrong now, and lose only on the others. So each share runs on
    the former first. From then on its margin can only fall, and the share of the highest margin goes on, piece by
    piece, until it has seen all images or falls behind another. This chooses what all images would choose for all
    shares, and most shares see few of them.

    Args:
        net: as it is now, in eval mode.
        ids: of the stitches.
        held_out: chunks of images (n, C, H, W) and answers: classes (n,) or shares of classes (n, classes).
        all_reduce: sums a tensor over ranks in place.
        progress: called with the number of images that went through a stitch, and its id; with None as the id where
            they went through all stitches together.

    Raises:
        SnnetError: logits that are not finite.
    """

    def __init__(
        self,
        net: StitchableNet,
        ids: Sequence[int],
        held_out: Sequence[tuple[Tensor, Tensor]],
        all_reduce: Callable[[Tensor], object] | None = None,
        progress: Callable[[int, int | None], object] = lambda count, stitch: None,
    ) -> None:
        self.net, self.ids, self.all_reduce, self.progress = net, list(ids), all_reduce, progress
        records = net.records
        self._errors = {stitch: _ANCHOR_ERRORS if records[stitch].anchor else _ERRORS for stitch in self.ids}
        self.images = torch.cat([images for images, _ in held_out])
        self.answers = torch.cat([answers for _, answers in held_out])
        self._rows = {stitch: row for row, stitch in enumerate(self.ids)}
        self.now, leads = self._run_now()
        self._refuse_what_is_not_finite()
        most = torch.ones(len(self.images)) if self.answers.ndim == 1 else self.answers.amax(1).cpu()
        room = most > self.now  # (stitches, images), where a stitch can gain
        self._pieces = {stitch: _pieces(room[row], leads[row]) for row, stitch in enumerate(self.ids)}
        *wrong, self._count = self._summed(
            torch.tensor([*room.sum(1).tolist(), len(self.images)], dtype=torch.float64)
        ).tolist()
        self._wrong = dict(zip(self.ids, wrong, strict=True))

    def open_stitches(self) -> list[int]:
        """The stitches that some statistics could change: they are wrong often enough now.

        Where k images can be gained, the gain is at most sqrt(k) times its standard error.
        """
        return [stitch for stitch in self.ids if self._wrong[stitch] > self._errors[stitch] ** 2]

    @torch.no_grad()
    def choose(self, measured: Statistics, shares: Sequence[float]) -> dict[int, ShareChoice]:
        """The share that works best for each stitch.

        Args:
            measured: own statistics of the open stitches, one group of share 1; what the net has is put back.
            shares: the shares to try, from 0 (the anchors' statistics) to 1.
        """
        before, open_ids = self.net.statistics, self.open_stitches()
        tried = [share for share in shares if share > 0 or before is not None]  # without statistics, 0 is what there is
        statistics = [self._mixed(measured, open_ids, share) for share in tried]
        trials = {stitch: [_Trial() for _ in tried] for stitch in open_ids if tried}
        choices = {stitch: ShareChoice(None, 0.0) for stitch in self.ids}
        while trials:
            running = []
            for stitch, found in list(trials.items()):
                bounds = [trial.bound(self._errors[stitch]) for trial in found]
                row = bounds.index(max(bounds))
                if bounds[row] > 0 and found[row].pieces <= _PIECES:
                    running.append((row, stitch))
                    continue
                if bounds[row] > 0:
                    choices[stitch] = ShareChoice(tried[row], 100 * found[row].gain / self._count)
                del trials[stitch]
            if running:
                self._run(running, statistics, trials)
        self.net.set_statistics(before)
        return choices

    def _run(
        self, running: list[tuple[int, int]], statistics: list[Statistics], trials: dict[int, list[_Trial]]
    ) -> None:
        """Runs the next piece of the given shares and stitches, and adds what it gives on all ranks."""
        gains: dict[tuple[int, int], list[float]] = {}
        for row in sorted({row for row, _ in running}):
            self.net.set_statistics(statistics[row])
            pieces = {s: self._pieces[s][trials[s][row].pieces] for of, s in running if of == row}
            gains |= {(row, stitch): gain for stitch, gain in self._gains(pieces).items()}
        sums = self._summed(torch.tensor([gains[key] for key in running], dtype=torch.float64).view(-1, 2))
        for (row, stitch), (gain, squares) in zip(running, sums.tolist(), strict=True):
            trial = trials[stitch][row]
            trial.gain, trial.squares, trial.pieces = trial.gain + gain, trial.squares + squares, trial.pieces + 1

    def _gains(self, pieces: dict[int, Tensor]) -> dict[int, list[float]]:
        """Sums of how much more of each answer stitches get right than before, and of its square, on some images."""
        found = {stitch: torch.zeros(2, dtype=torch.float64) for stitch in pieces}
        for at in range(0, len(self.images), _APART):
            part = slice(at, at + _APART)
            images, answers, now = self.images[part], self.answers[part], self.now[:, part]
            wanted = {stitch: piece[part] for stitch, piece in pieces.items() if piece[part].any()}
            for stitch, logits in wanted_logits(self.net, images, wanted):
                chosen = wanted[stitch]
                gain = _right(logits, answers[chosen.to(answers.device)]).cpu() - now[self._rows[stitch], chosen]
                found[stitch] += torch.stack([gain.sum(), gain.square().sum()])
                self.progress(len(gain), stitch)
        return {stitch: sums.tolist() for stitch, sums in found.items()}

    def _mixed(self, measured: Statistics, ids: Sequence[int], share: float) -> Statistics:
        values = measured.mixed(self.net, ids, share) if share else {}
        return Statistics(self.net, values, [StatisticsGroup(share, tuple(ids))], measured.samples)

    @torch.no_grad()
    def _run_now(self) -> tuple[Tensor, Tensor]:
        """What stitches do now, for every image (stitches, images).

        Returns:
            The share of each answer that is right: 0 or 1 where answers are classes; NaN where logits are not finite.
            By how much the answer leads: the difference of the two largest logits.
        """
        found = torch.zeros(2, len(self.ids), len(self.images), dtype=torch.float64)
        for at in range(0, len(self.images), _TOGETHER):
            part = slice(at, at + _TOGETHER)
            for stitch, logits in all_logits(self.net, self.images[part], self.ids):
                right = _right(logits, self.answers[part])
                row = self._rows[stitch]
                found[0, row, part] = right.where(logits.isfinite().all(1), math.nan).cpu()
                first = logits.topk(min(2, logits.shape[1])).values
                found[1, row, part] = (first[:, 0] - first[:, -1]).cpu()
            self.progress(len(self.images[part]), None)
        return found[0], found[1]

    def _refuse_what_is_not_finite(self) -> None:
        """Ends all ranks alike where some stitch has logits that are not finite on some rank."""
        broken = self._summed(self.now.isnan().sum(1).double()).nonzero()[:, 0].tolist()
        if broken:
            stitch = self.ids[broken[0]]
            raise SnnetError(
                f'the logits of stitch {stitch} ({self.net.stitches[stitch]}) are not finite, with the statistics that '
                f'it has: check weights and images'
            )

    def _summed(self, values: Tensor) -> Tensor:
        """Sums over ranks (float64), back on the CPU."""
        if self.all_reduce is None:
            return values
        values = values.to(next(self.net.parameters()).device)
        self.all_reduce(values)
        return values.cpu()


def _pieces(room: Tensor, leads: Tensor) -> list[Tensor]:
    """The images (images,) of each piece: those on which a stitch can gain, then the others.

    The others come in pieces that double, those first whose answer leads least, because they are the first to be lost.
    """
    rest = (~room).nonzero()[:, 0]
    rest = rest[leads[rest].argsort(stable=True)]
    ends = [round(len(rest) * (2**i - 1) / (2**_PIECES - 1)) for i in range(_PIECES + 1)]
    others = []
    for begin, end in pairwise(ends):
        piece = torch.zeros_like(room)
        piece[rest[begin:end]] = True
        others.append(piece)
    return [room, *others]


def _right(logits: Tensor, answers: Tensor) -> Tensor:
    """Which answers the logits (n, classes) give: (n,), float64."""
    found = logits.argmax(1)
    if answers.ndim == 1:
        return (found == answers).double()
    return answers.gather(1, found[:, None]).squeeze(1).double()
