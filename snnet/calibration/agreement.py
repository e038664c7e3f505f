"""How close stitches come to the largest anchor on images without labels, and which of them are worth having."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..budget.frontier import mixing_accuracy
from ..net.shared_prefixes import all_logits
from ..net.stitchable_net import StitchableNet
from ..utils.progress import Progress
from .divergence import divergence


@dataclass(frozen=True)
class Agreement:
    """How close a stitch comes to the largest anchor.

    Attributes:
        expected: the accuracy in percent that it would have if the probabilities of the anchor were right: the mean
            probability that the anchor gives to the stitch's answer. Where images have several labels, an answer is a
            yes or no to every class.
        divergence: mean Kullback-Leibler divergence of its probabilities from the anchor's, in nats.
    """

    expected: float
    divergence: float


def compare(logits: Tensor, answers: Tensor, several_labels: bool = False) -> Tensor:
    """Probability that an answer is right if the largest anchor knows, and divergence, by image: (2, n), float64.

    Args:
        logits: of a stitch (n, classes).
        answers: logits of the largest anchor (n, classes).
        several_labels: whether each logit says yes or no to its class by itself.
    """
    found, wanted = logits.double(), answers.double()
    if several_labels:
        right = torch.where(found > 0, wanted, -wanted).sigmoid().prod(1)
    else:
        right = wanted.softmax(1).gather(1, found.argmax(1, keepdim=True)).squeeze(1)
    return torch.stack([right, divergence(found, wanted, several_labels).sum(1)]).cpu()


def agreement_of(rows: Tensor) -> Agreement:
    """The means over the images of what `compare` gave."""
    right, divergence = rows.mean(1).tolist()
    return Agreement(100 * right, divergence)


@torch.no_grad()
def agreements(
    net: StitchableNet,
    stitches: Iterable[int],
    chunks: Sequence[Tensor],
    answers: Sequence[Tensor],
    quiet: bool = False,
) -> dict[int, Agreement]:
    """The agreement of some stitches with the answers of the largest anchor.

    Args:
        net: in eval mode.
        stitches: ids.
        chunks: images (n, C, H, W).
        answers: logits of the largest anchor for each chunk (n, classes).
        quiet: show no progress.
    """
    ids = sorted(stitches)
    progress = Progress(len(chunks), f'batches through {len(ids)} stitches', quiet=quiet)
    parts: dict[int, list[Tensor]] = {stitch: [] for stitch in ids}
    for images, wanted in zip(chunks, answers, strict=True):
        for stitch, logits in all_logits(net, images, ids):
            parts[stitch].append(compare(logits, wanted, net.several_labels))
        progress.update(1)
    progress.close()
    return {stitch: agreement_of(torch.cat(found, 1)) for stitch, found in parts.items()}


def mixed_agreements(net: StitchableNet, found: Mapping[int, Agreement]) -> dict[int, Agreement]:
    """What mixing two neighboring anchors at random, at the cost of each stitch, would give.

    Args:
        net: has the costs.
        found: agreements, those of the anchors among them.
    """
    known = [record for record in net.records if record.stitch in found]
    right = [replace(record, top1=found[record.stitch].expected) for record in known]
    divergence = [replace(record, top1=found[record.stitch].divergence) for record in known]
    mixed = {}
    for record in known:
        values = [mixing_accuracy(records, record.flops or 0) for records in (right, divergence)]
        mixed[record.stitch] = Agreement(*(math.nan if value is None else value for value in values))
    return mixed
