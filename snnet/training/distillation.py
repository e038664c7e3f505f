"""Distillation from a teacher, hard as in the papers' recipes or soft, by way of answers compact enough to be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.nn import functional as F

from ..anchors.names import resolve
from ..anchors.weights import load_model
from ..errors import SnnetError, reason_of
from ..net.stitchable_net import StitchableNet
from ..utils.files import sha256

KINDS = ('hard', 'soft')
LARGEST = 'largest'


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
    """What a teacher is asked, and thus what an answer keeps of its logits.

    A soft answer keeps the probabilities of the k most likely classes and of all others together. The divergence from
    it, over these k + 1 outcomes, is a lower bound of the divergence over all classes that grows with k and vanishes
    only where the student gives all k classes the teacher's probability; the share of the rest then follows.

    Attributes:
        kind: 'hard' asks for the most likely class (DeiT, Eq. 3), 'soft' for the distribution (DeiT, Eq. 2).
        topk: how many classes a soft answer tells apart; 0 for all.
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
        """How many of the classes a soft answer tells apart."""
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


class Teacher(nn.Module):
    """A frozen network in eval mode that takes images normalized for the student.

    Args:
        model: the network.
        mean, std: how its own images are normalized, a value a channel.
        student_mean, student_std: how the images it is given are normalized.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        student_mean: tuple[float, ...],
        student_std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        own, given = torch.tensor([mean, std]), torch.tensor([student_mean, student_std])
        self.same = torch.equal(own, given)
        self.register_buffer('scale', (given[1] / own[1]).view(-1, 1, 1))
        self.register_buffer('shift', ((given[0] - own[0]) / own[1]).view(-1, 1, 1))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        return self.model(x if self.same else x * self.scale + self.shift)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode."""
        return super().train(False)


def teacher_maker(name: str, net: StitchableNet) -> Callable[[], Teacher]:
    """What makes the teacher called `name`, on the CPU, when it is needed; it may never be (see `replay`).

    Args:
        name: NAME or NAME=FILE as for anchors, or 'largest' for a copy of the largest anchor. That copy is taken now,
            for the anchor changes while it is trained.
        net: the student.

    Returns:
        A function that raises SnnetError where the teacher has another number of classes than the net or does not take
        its images, and NoWeights where its weights cannot be had.
    """
    student = resolve_data_config(model=net.anchor(0).model, verbose=False)
    classes, size = net.num_classes, net.input_size
    copy = net.anchor(len(net.anchors) - 1).duplicate().cpu() if name == LARGEST else None

    def make() -> Teacher:
        model = load_model(resolve(name), pretrained=True) if copy is None else copy
        config = resolve_data_config(model=model, verbose=False) if copy is None else student
        if model.num_classes != classes:
            raise SnnetError(f'teacher {name} knows {model.num_classes} classes, the anchors {classes}')
        teacher = Teacher(model, config['mean'], config['std'], student['mean'], student['std'])
        try:
            teacher(torch.zeros(1, *size))
        except Exception as error:  # whatever a network raises for images of another size than its own
            pixels = 'x'.join(map(str, size))
            raise SnnetError(f'teacher {name} does not take the images of {pixels}: {reason_of(error)}') from error
        return teacher

    return make


def teacher_identity(name: str, net: StitchableNet) -> tuple[str, str | None]:
    """Tells teachers apart without loading them: timm's name with the tag, and the SHA-256 of local weights.

    Args:
        name: as for `teacher_maker`. The digest of the largest anchor is of its weights now, before any training.
        net: the student.

    Returns:
        The name; and the digest, which is '' for timm's own weights, whose tag says which, and None where the file
        cannot be read, for a run that replays every answer needs no teacher.

    Raises:
        SnnetError: no such network or tag.
    """
    if name == LARGEST:
        return LARGEST, _digest(net.anchor(len(net.anchors) - 1))
    text, equals, file = (part.strip() for part in name.partition('='))
    model = resolve(text).model
    config = get_pretrained_cfg(model)
    full = f'{config.architecture}.{config.tag}' if config is not None and config.tag and not equals else model
    if not equals:
        return full, ''
    try:
        return full, sha256(Path(file))
    except OSError:
        return full, None


class DistillationLoss(nn.Module):
    """(1 - alpha) * base loss + alpha * distance to the teacher's answer.

    The distance from a hard answer is the cross entropy (DeiT, Eq. 3); that from a soft one the Kullback-Leibler
    divergence at temperature tau, over the outcomes that the answer tells apart (see `Question`), times tau squared
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
        loss = self.base(logits, targets)
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


def _digest(network: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
