"""BatchNorm statistics of every stitch, kept where they help."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..budget.record import RESULTS, Record
from ..errors import SnnetError
from ..net.batchnorm import Statistics, StatisticsGroup, batch_norms
from ..net.part_tree import build_part_tree
from ..net.stitchable_net import StitchableNet
from ..stitching.stitch import Leg
from ..utils.whole_number import whole_number
from .choose_shares import choose_shares, combined, tell_choices
from .image_chunks import image_chunks
from .measure_statistics import StatisticsMeter

_log = logging.getLogger(__name__)
SHARES = (0.0, 0.1, 0.3, 0.5, 1.0)
"""How much of its own statistics a stitch may use; the anchors' statistics are the rest."""
_CHUNK = 32
"""Images that run at a time: what a part needs besides its input and output does not grow with the samples."""

_Chunk = tuple[Tensor, Tensor | None]


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
    """Gives BatchNorm statistics of their own to the stitches that they help, and puts the net into eval mode.

    An anchor's running statistics are a mixture of all stitches after joint training, and before it they are those of
    the anchor alone; neither is what flows through a stitch. Here each BatchNorm gets the exact mean and unbiased
    variance of its inputs over some images, while the BatchNorms before it normalize with their new statistics: what a
    stitch sees in eval mode, and the same (but for rounding) however the images are split into batches and over ranks.

    Exact statistics can also do harm, to an anchor above all: an EfficientNet-Lite0 lost 12 points by them
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
            augmented as when the weights were trained: BatchNorm normalizes what it sees now by what it saw then.
        samples: how many images to use; if there are fewer, those are used, with a warning. Without `held_out`, every
            other one is set aside to judge by. Memory holds the features of the measured ones at about three positions
            (4 GB for 1,000 images of 224 pixels in a ResNet-50).
        stitches: ids; by default all but those with parameters of their own, which were fitted to the statistics that
            they have. The others keep what they have.
        progress: called with the number of images that went through a part, and of how many in all.
        all_reduce: sums a tensor over ranks in place; `samples` then counts the images of this rank.
        held_out: other images to judge by, up to `samples` of them, prepared as for evaluation. Where images come
            without classes, the answers of the largest anchor, as it is now, stand in for them.
        shares: shares of a stitch's own statistics to try, from 0 to 1. A single one is taken unjudged, and all
            images are measured.

    Raises:
        SnnetError: no BatchNorm, no images, shares out of range, features that are not finite, or a stitch that has
            parameters of its own.
        UnknownStitch: no such id.
    """
    if not batch_norms(net):
        raise SnnetError(f'there is nothing to recalibrate: no anchor of {net.title} has BatchNorm')
    samples = whole_number('samples', samples)
    if samples < 1:
        raise SnnetError(f'at least one image is needed to recalibrate, but samples={samples} was given')
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise SnnetError(f'shares are one or more numbers from 0 to 1, not {list(shares)}')
    ids = _chosen(net, stitches)
    net.eval()
    net.known.verified(net, thorough=True)  # a stitch that is not recalibrated keeps what it has
    with torch.inference_mode(False), torch.no_grad():
        chunks = _collected(net, batches, samples)
        judges = _collected(net, held_out, samples) if held_out is not None and len(shares) > 1 else []
        if held_out is None and len(shares) > 1:
            chunks, judges = _dealt(chunks)
        measured_on, judged_on = _counts(net, chunks, judges, len(shares) > 1, all_reduce)
        _warn_of_few(samples, measured_on + (judged_on if held_out is None else 0), all_reduce)
        answered = [(images, _answers(net, images, targets)) for images, targets in judges]
        tree, parts = build_part_tree(net, ids), sum(1 for _ in build_part_tree(net, ids).walk())
        images = sum(len(chunk) for chunk, _ in chunks)
        total = parts * (images + len(shares) * sum(len(chunk) for chunk, _ in judges))

        def tell(count: int) -> None:
            if progress is not None:
                progress(count, total)

        before, records = net.statistics, list(net.records)
        net.set_statistics(None)
        try:
            values = StatisticsMeter(net, all_reduce, tell).measure(tree, [chunk for chunk, _ in chunks])
        finally:
            net.set_statistics(before)
        measured = Statistics(net, values, [StatisticsGroup(1.0, tuple(ids))], measured_on)
        if len(shares) == 1:
            values = measured.mixed(net, ids, shares[0]) if shares[0] else {}
            net.set_statistics(Statistics(net, values, [StatisticsGroup(shares[0], tuple(ids))], measured_on))
            _keep_accuracies(net, records, ids)
            return
        choices = choose_shares(net, measured, shares, answered, all_reduce, lambda count: tell(count * parts))
        chosen = combined(net, measured, choices, judged_on)
        net.set_statistics(chosen)
        _keep_accuracies(net, records, [i for i, choice in choices.items() if choice.share is not None])
        tell_choices(chosen, choices)


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


def _collected(net: StitchableNet, batches: Iterable[Tensor | Sequence[Any]], samples: int) -> list[_Chunk]:
    """The images, in chunks on the net's device and in its type, with their targets."""
    weight = next(net.parameters())
    return [
        (images.to(weight.device, weight.dtype), None if targets is None else targets.to(weight.device))
        for images, targets in image_chunks(batches, samples, _CHUNK)
    ]


def _dealt(chunks: list[_Chunk]) -> tuple[list[_Chunk], list[_Chunk]]:
    """Every other image, from the first one on, and the others."""
    if not chunks:
        return [], []
    images = torch.cat([images for images, _ in chunks])
    targets = [target for _, target in chunks if target is not None]
    known = torch.cat(targets) if len(targets) == len(chunks) else None
    halves: list[list[_Chunk]] = []
    for first in (0, 1):
        own, answers = images[first::2], None if known is None else known[first::2]
        starts = range(0, len(own), _CHUNK)
        halves.append(
            [(own[at : at + _CHUNK], None if answers is None else answers[at : at + _CHUNK]) for at in starts]
        )
    return halves[0], halves[1]


def _counts(
    net: StitchableNet,
    chunks: list[_Chunk],
    judges: list[_Chunk],
    judged: bool,
    all_reduce: Callable[[Tensor], object] | None,
) -> tuple[int, int]:
    """Images of all ranks that are measured, and that judge; a rank without any would leave the others waiting."""
    own = [sum(len(images) for images, _ in part) for part in (chunks, judges)]
    missing = own[0] == 0 or (judged and own[1] == 0)
    counts = torch.tensor([missing, *own], dtype=torch.float64, device=next(net.parameters()).device)
    if all_reduce is not None:
        all_reduce(counts)
    if counts[0] > 0:
        where = ' on some process' if all_reduce else ''
        if own[0] == 0 or not judged:
            raise SnnetError(f'no images to recalibrate BatchNorm with{where}')
        raise SnnetError(f'no images{where} are left to judge the statistics by: at least two images are needed')
    return int(counts[1]), int(counts[2])


def _warn_of_few(samples: int, found: int, all_reduce: Callable[[Tensor], object] | None) -> None:
    if all_reduce is None and found < samples:
        _log.warning('recalibrating with all %d images there are (%d were asked for)', found, samples)


def _answers(net: StitchableNet, images: Tensor, targets: Tensor | None) -> Tensor:
    """Classes (n,), or shares of classes (n, classes): as given, or else what the largest anchor answers."""
    if targets is not None and targets.ndim == 1 and not targets.is_floating_point():
        return targets
    if targets is not None and targets.shape == (len(images), net.num_classes):
        return targets
    name = net.anchor(len(net.anchors) - 1).name
    stitch = next((i for i, stitch in enumerate(net.stitches) if stitch.legs == (Leg(name),)), None)
    logits: Tensor = net.anchor(name).run(images) if stitch is None else net(images, stitch=stitch)
    return logits.argmax(1)
