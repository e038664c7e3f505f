"""What is asked of a teacher, and what is kept of its logits: an answer small enough to be stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import SnnetError

KINDS = ('hard', 'soft')


@dataclass(frozen=True)
class Answer:
    """What the loss needs to know of a teacher's logits for N images.

    Attributes:
        classes: the k most likely classes (N, k), int64, k = 1 for a hard answer; None where `shares` lists them all.
        shares: logarithms of the teacher's probabilities, float16: (N, k + 1) for `classes` and, last, for all others
            together, or (N, all classes) in order; None for a hard answer.
    """

    classes: Tensor | None
    shares: Tensor | None


@dataclass(frozen=True)
class Question:
    """What a teacher is asked, which decides what an answer keeps of its logits.

    A soft answer keeps the probabilities of the k most likely classes and of all others together. The divergence from
    it, over these k + 1 outcomes, is a lower bound of the divergence over all classes that grows with k and vanishes
    only where the student gives all k classes the teacher's probability; the share of the rest then follows.

    Attributes:
        kind: 'hard' asks for the most likely class (DeiT, Eq. 3), 'soft' for the distribution (DeiT, Eq. 2).
        topk: how many classes a soft answer lists; 0 for all.
        tau: temperature of a soft answer.

    Raises:
        SnnetError: another kind, a negative topk, or a tau that is not positive and finite.
    """

    kind: str = 'hard'
    topk: int = 0
    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SnnetError(f"distillation is {' or '.join(KINDS)}, not '{self.kind}'")
        check_temperature(self.tau)
        if self.topk < 0:
            raise SnnetError(f'distill_topk is a number of classes, or 0 for all, not {self.topk}')

    def kept(self, classes: int) -> int:
        """How many of the classes a soft answer lists."""
        return min(self.topk or classes, classes)

    def answer(self, logits: Tensor) -> Answer:
        """The answer that a teacher's logits (N, classes) hold."""
        if self.kind == 'hard':
            return Answer(logits.argmax(dim=1, keepdim=True), None)
        shares = log_shares(logits, self.tau)
        kept, classes = self.kept(shares.shape[1]), None
        if kept < shares.shape[1]:
            classes = shares.topk(kept, dim=1).indices
            shares = grouped(shares, classes)
        return Answer(classes, shares.clamp(min=torch.finfo(torch.float16).min).half())


def check_temperature(tau: float) -> None:
    """Refuses a temperature of soft answers that is not positive and finite.

    Raises:
        SnnetError: it is not.
    """
    if not 0 < tau < math.inf:
        raise SnnetError(f'distillation needs a temperature above 0, but got tau={tau}')


def log_shares(logits: Tensor, tau: float) -> Tensor:
    """Logarithms of the probabilities at a temperature, float32 also where autocast made the logits half."""
    return F.log_softmax(logits.float() / tau, dim=1)


def grouped(shares: Tensor, classes: Tensor) -> Tensor:
    """Log probabilities (N, all classes) to those of some classes (N, k) and of all others together (N, k + 1)."""
    rest = shares.scatter(1, classes, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([shares.gather(1, classes), rest], dim=1)
