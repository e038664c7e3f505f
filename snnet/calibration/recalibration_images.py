"""The images that BatchNorm statistics are measured on, and others that judge them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import SnnetError
from ..net.stitchable_net import StitchableNet
from ..stitching.stitch import Leg
from .image_chunks import image_chunks

_log = logging.getLogger(__name__)
_CHUNK = 32
"""Images that run at a time: what a part needs besides its input and output does not grow with the samples."""

_Chunk = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class RecalibrationImages:
    """Images in chunks, on the net's device and in its type.

    Attributes:
        measured: chunks (n, C, H, W) to measure on.
        judging: chunks (n, C, H, W) to judge by, with the classes (n,) or shares of classes (n, classes) to answer.
        measured_on, judged_on: how many there are of each, on all ranks.
    """

    measured: list[Tensor]
    judging: list[tuple[Tensor, Tensor]]
    measured_on: int
    judged_on: int


def gather_images(
    net: StitchableNet,
    batches: Iterable[Tensor | Sequence[Any]],
    held_out: Iterable[Tensor | Sequence[Any]] | None,
    samples: int,
    judged: bool,
    all_reduce: Callable[[Tensor], object] | None,
) -> RecalibrationImages:
    """Takes images from batches; without `held_out`, every other one is set aside to judge by.

    Args:
        net: whose largest anchor answers where images come without classes.
        batches, held_out, samples, all_reduce: as for `recalibrate`.
        judged: whether images to judge by are needed.

    Raises:
        SnnetError: no images.
    """
    chunks = _collected(net, batches, samples)
    judges = _collected(net, held_out, samples) if held_out is not None and judged else []
    if held_out is None and judged:
        chunks, judges = _dealt(chunks)
    measured_on, judged_on = _counts(net, chunks, judges, judged, all_reduce)
    found = measured_on + (judged_on if held_out is None else 0)
    if all_reduce is None and found < samples:
        _log.warning('recalibrating with all %d images there are (%d were asked for)', found, samples)
    answered = [(images, _answers(net, images, targets)) for images, targets in judges]
    return RecalibrationImages([images for images, _ in chunks], answered, measured_on, judged_on)


def _collected(net: StitchableNet, batches: Iterable[Tensor | Sequence[Any]], samples: int) -> list[_Chunk]:
    """The images, in chunks on the net's device and in its type, with their targets."""
    weight = next(net.parameters())
    return [
        (images.to(weight.device, weight.dtype), None if targets is None else targets.to(weight.device))
        for images, targets in image_chunks(batches, samples, _CHUNK, net.input_size[0], net.input_size[1:])
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
