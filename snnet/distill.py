"""Distillation from a teacher, hard as in the papers' recipes or soft."""

from __future__ import annotations

import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import SnnetError, reason_of
from .net import StitchableNet
from .weights import load_model, resolve

KINDS = ('hard', 'soft')
LARGEST = 'largest'


class Teacher(nn.Module):
    """A frozen network in eval mode that takes images normalised for the student.

    Args:
        model: the network.
        mean, std: how its own images are normalised, a value a channel.
        student_mean, student_std: how the images it is given are normalised.
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


def make_teacher(name: str, net: StitchableNet) -> Teacher:
    """The teacher called `name`: NAME or NAME=FILE as for anchors, or 'largest' for a copy of the largest anchor.

    Raises:
        SnnetError: it has another number of classes than the net, or does not take its images.
        NoWeights: its weights cannot be had.
    """
    student = resolve_data_config(model=net.anchor(0).model, verbose=False)
    if name == LARGEST:
        model: nn.Module = net.anchor(len(net.anchors) - 1).duplicate()
        config = student
    else:
        model = load_model(resolve(name), pretrained=True)
        config = resolve_data_config(model=model, verbose=False)
    if model.num_classes != net.num_classes:
        raise SnnetError(f'teacher {name} knows {model.num_classes} classes, the anchors {net.num_classes}')
    teacher = Teacher(model, config['mean'], config['std'], student['mean'], student['std'])
    try:
        teacher(torch.zeros(1, *net.input_size))
    except Exception as error:  # whatever a network raises for images of another size than its own
        size = 'x'.join(map(str, net.input_size))
        raise SnnetError(f'teacher {name} does not take the images of {size}: {reason_of(error)}') from error
    return teacher


class DistillationLoss(nn.Module):
    """(1 - alpha) * base loss + alpha * distance to the teacher's answer.

    Args:
        base: criterion for logits and targets.
        teacher: None for the base loss alone.
        kind: 'hard' takes the teacher's most likely class as a label (DeiT, Eq. 3), 'soft' its distribution at
            temperature tau (DeiT, Eq. 2).
        alpha: weight of the teacher, from 0 to 1.
        tau: temperature of soft distillation.
    """

    def __init__(
        self, base: nn.Module, teacher: Teacher | None, kind: str = 'hard', alpha: float = 0.5, tau: float = 1.0
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise SnnetError(f"distillation is {' or '.join(KINDS)}, not '{kind}'")
        if not 0 <= alpha <= 1 or tau <= 0:
            raise SnnetError(f'distillation needs 0 <= alpha <= 1 and tau > 0, but got alpha={alpha} and tau={tau}')
        self.base, self.teacher, self.kind, self.alpha, self.tau = base, teacher, kind, alpha, tau

    def forward(self, images: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of the student's logits (N, classes) for images (N, C, H, W) and the base criterion's targets."""
        loss = self.base(logits, targets)
        if self.teacher is None:
            return loss
        answer = self.teacher(images)
        if self.kind == 'hard':
            distance = F.cross_entropy(logits, answer.argmax(dim=1))
        else:
            own, other = (F.log_softmax(x / self.tau, dim=1) for x in (logits, answer))
            distance = F.kl_div(own, other, reduction='batchmean', log_target=True) * self.tau**2
        return (1 - self.alpha) * loss + self.alpha * distance
