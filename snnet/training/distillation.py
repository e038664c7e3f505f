"""Distillation from a teacher, hard as in the published recipes or soft, through answers small enough to be stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.sections import option
from ..errors import SnnetError

KINDS = ('hard', 'soft')


@dataclass
class DistillationSettings:
    """Who teaches the stitches, and how much."""

    teacher: str = option(
        '',
        "NAME or NAME=FILE, 'largest' for the largest anchor, 'none' "
        '(default: regnety_160; with --from the largest anchor with its fitted head)',
    )
    distill: str = option('hard', 'hard or soft')
    distill_alpha: float = option(0.5, 'weight of the teacher')
    distill_tau: float = option(1.0, 'temperature of soft distillation')
    distill_topk: int = option(16, 'classes that a soft answer of the teacher lists; 0 for all')
    teacher_store: str = option('', "folder for the teacher's answers, which later epochs and runs replay", free=True)
    teacher_epochs: int | None = option(
        None, 'repeat the augmentations after this many epochs (default: never)', least=1
    )
    protect_anchors: float = option(0.0, "weight of an anchor's own original as its teacher")

    @property
    def question(self) -> Question:
        """What the teacher is asked."""
        return Question(self.distill, self.distill_topk, self.distill_tau)


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
        SnnetError: another kind, a negative topk, or a tau that is not positive.
    """

    kind: str = 'hard'
    topk: int = 0
    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SnnetError(f"distillation is {' or '.join(KINDS)}, not '{self.kind}'")
        if self.tau <= 0:
            raise SnnetError(f'distillation needs a temperature above 0, not tau={self.tau}')
        if self.topk < 0:
            raise SnnetError(f'distill_topk is a number of classes, or 0 for all, not {self.topk}')

    def kept(self, classes: int) -> int:
        """How many of the classes a soft answer lists."""
        return min(self.topk or classes, classes)

    def answer(self, logits: Tensor) -> Answer:
        """The answer that a teacher's logits (N, classes) hold."""
        if self.kind == 'hard':
            return Answer(logits.argmax(dim=1, keepdim=True), None)
        shares = _log_shares(logits, self.tau)
        kept, classes = self.kept(shares.shape[1]), None
        if kept < shares.shape[1]:
            classes = shares.topk(kept, dim=1).indices
            shares = _grouped(shares, classes)
        return Answer(classes, shares.clamp(min=torch.finfo(torch.float16).min).half())


class DistillationLoss(nn.Module):
    """(1 - alpha) * base loss + alpha * distance to the teacher's answer.

    The distance from a hard answer is the cross entropy (DeiT, Eq. 3); that from a soft one the Kullback-Leibler
    divergence at temperature tau, over the outcomes that the answer lists (see `Question`), times tau squared
    (DeiT, Eq. 2).

    Args:
        base: criterion for logits and targets.
        alpha: weight of the teacher, from 0 to 1.
        tau: temperature of soft answers, that of the question.
    """

    def __init__(self, base: nn.Module, alpha: float = 0.5, tau: float = 1.0) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise SnnetError(f'distillation needs 0 <= alpha <= 1, but got alpha={alpha}')
        self.base, self.alpha, self.tau = base, alpha, tau

    def forward(self, logits: Tensor, targets: Tensor, answer: Answer | None = None) -> Tensor:
        """Loss of the student's logits (N, classes); the base loss alone where there is no teacher's answer."""
        loss: Tensor = self.base(logits, targets)
        if answer is None:
            return loss
        return (1 - self.alpha) * loss + self.alpha * self._distance(logits, answer)

    def _distance(self, logits: Tensor, answer: Answer) -> Tensor:
        if answer.shares is None:
            assert answer.classes is not None  # a hard answer
            return F.cross_entropy(logits, answer.classes[:, 0])
        own = _log_shares(logits, self.tau)
        if answer.classes is not None:
            own = _grouped(own, answer.classes)
        wanted = F.log_softmax(answer.shares.float(), dim=1)  # rounded to float16 they add up to nearly one
        return F.kl_div(own, wanted, reduction='batchmean', log_target=True) * self.tau**2


def _log_shares(logits: Tensor, tau: float) -> Tensor:
    """Logarithms of the probabilities at a temperature, float32 also where autocast made the logits half."""
    return F.log_softmax(logits.float() / tau, dim=1)


def _grouped(shares: Tensor, classes: Tensor) -> Tensor:
    """Log probabilities (N, all classes) to those of some classes (N, k) and of all others together (N, k + 1)."""
    rest = shares.scatter(1, classes, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([shares.gather(1, classes), rest], dim=1)
