"""Distillation from a teacher, hard as in the published recipes or soft."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from ..config.sections import option
from ..errors import SnnetError
from .answer import Answer, Question, check_temperature, grouped, log_shares


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
    distill_topk: int = option(16, 'classes that a soft answer of the teacher lists; 0 for all', least=0)
    teacher_store: str = option('', "folder for the teacher's answers, which later epochs and runs replay", free=True)
    teacher_epochs: int | None = option(
        None, 'repeat the augmentations after this many epochs (default: never)', least=1
    )
    protect_anchors: float = option(0.0, "weight of an anchor's own original as its teacher", least=0)

    @property
    def question(self) -> Question:
        """What the teacher is asked."""
        return Question(self.distill, self.distill_topk, self.distill_tau)


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
        check_temperature(tau)
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
        own = log_shares(logits, self.tau)
        if answer.classes is not None:
            own = grouped(own, answer.classes)
        wanted = F.log_softmax(answer.shares.float(), dim=1)  # rounded to float16 they add up to nearly one
        return F.kl_div(own, wanted, reduction='batchmean', log_target=True) * self.tau**2
