"""The teacher: a frozen network, built only when an answer is missing, and what identifies it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg, is_model
from torch import Tensor, nn

from ..anchors.names import resolve, weights_file, without_file
from ..anchors.new_head import has_new_head
from ..anchors.weights import load_model
from ..errors import NoClassifier, SnnetError, reason_of
from ..net.stitchable_net import StitchableNet
from ..utils.digest import digest_of_tensors
from ..utils.files import sha256

LARGEST = 'largest'
NONE = 'none'
PUBLISHED = 'regnety_160'
"""The teacher of the papers."""


class Teacher(nn.Module):
    """A frozen network in eval mode that takes images normalized for the student.

    Args:
        model: the network.
        mean, std: how the images it was trained on are normalized, one value per channel.
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
        logits: Tensor = self.model(x if self.same else x * self.scale + self.shift)
        return logits

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode."""
        return super().train(False)


def teacher_maker(name: str, net: StitchableNet) -> Callable[[], Teacher]:
    """A function that builds the teacher on the CPU; where all answers are stored, it is never called.

    Args:
        name: NAME or NAME=FILE as for anchors, or 'largest' for a copy of the largest anchor. That copy is made now,
            because the anchor changes while it is trained.
        net: the student.

    Returns:
        A function that raises SnnetError where the teacher has another number of classes than the net or does not take
        its images, and NoWeights where its weights cannot be had.
    """
    student = resolve_data_config(model=net.anchor(0).model, verbose=False)
    classes, size = net.num_classes, net.input_size
    known = _classes_of_weights(name)
    if known is not None and known != classes:
        raise SnnetError(_other_classes(name, known, classes))  # before the weights are fetched
    largest = net.anchor(len(net.anchors) - 1)
    if name == LARGEST and has_new_head(largest.model):
        raise SnnetError(
            f"the teacher 'largest' is {largest.name}, whose classifier for {classes} classes is new, so its answers "
            f'are random: train with --teacher none, or name a teacher of these classes as NAME=FILE'
        )
    copy = largest.duplicate().cpu() if name == LARGEST else None

    def make() -> Teacher:
        try:
            model: Any = load_model(resolve(name), pretrained=True) if copy is None else copy
        except NoClassifier:
            raise SnnetError(_other_classes(name, 0, classes)) from None
        config = resolve_data_config(model=model, verbose=False) if copy is None else student
        if model.num_classes != classes:
            raise SnnetError(_other_classes(name, model.num_classes, classes))
        teacher = Teacher(model, config['mean'], config['std'], student['mean'], student['std'])
        try:
            teacher(torch.zeros(1, *size))
        except Exception as error:  # whatever a network raises for images of another size than its own
            pixels = 'x'.join(map(str, size))
            raise SnnetError(f'teacher {name} does not take the images of {pixels}: {reason_of(error)}') from error
        return teacher

    return make


def _classes_of_weights(name: str) -> int | None:
    """The number of classes of timm's own weights; None where a file or an anchor is the teacher."""
    if name == LARGEST or weights_file(name) is not None:
        return None
    model = resolve(name).model
    config = get_pretrained_cfg(model) if is_model(model) else None
    return None if config is None else config.num_classes


def _other_classes(name: str, known: int, classes: int) -> str:
    has = f'{known} classes, but the anchors have {classes}' if known else 'no classifier, so it cannot answer'
    these = 'these' if known else str(classes)
    return f'teacher {name} has {has}: name a teacher of {these} classes as NAME=FILE, or train with --teacher none'


def teacher_identity(name: str, net: StitchableNet) -> tuple[str, str | None]:
    """Identifies a teacher without loading it: timm's name with the tag, and the SHA-256 of local weights.

    Args:
        name: as for `teacher_maker`. The digest of the largest anchor is of its weights now, before any training.
        net: the student.

    Returns:
        The name and the digest. The digest is '' for timm's own weights, which the tag identifies, and None where the
        file cannot be read, because a run that replays every answer needs no teacher.

    Raises:
        SnnetError: no such network or tag.
    """
    if name == LARGEST:
        return LARGEST, digest_of_tensors(net.anchor(len(net.anchors) - 1).state_dict())
    file = weights_file(name)
    model = resolve(without_file(name)).model
    config = get_pretrained_cfg(model)
    full = f'{config.architecture}.{config.tag}' if config is not None and config.tag and file is None else model
    if file is None:
        return full, ''
    try:
        return full, sha256(file)
    except OSError:
        return full, None
