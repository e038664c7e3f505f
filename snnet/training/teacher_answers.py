"""The teacher's answers, kept on disk to avoid running the teacher again on images it has already seen.

Every draw of a run is keyed, so the images of a step, and with them the teacher's answers, follow from the settings.
The first run that names a store fills it. Later runs with other recipes, or later epochs where the augmentations repeat
(`teacher_epochs`), replay it. A live teacher's logits pass through the same compact `Answer`, so both ways agree bit
for bit.

Cost on disk for ImageNet, 1,281,167 images and 50 epochs of augmentations (5 epochs: a tenth):

| answers | bytes per image | 50 epochs | 5 epochs |
|---|---|---|---|
| hard, 1000 classes | 2 | 128 MB | 13 MB |
| soft, top 16 (indices of 2 bytes, 17 values of 2) | 66 | 4.2 GB | 423 MB |
| soft, all 1000 classes | 2000 | 128 GB | 12.8 GB |

When it pays: RegNetY-160 takes 16 GMACs per image, the mean stitch of DeiT-Ti/S/B 7.6 forward and about twice that
backward, 22.8 together, so the teacher is 16 / 38.8 = 41 % of the compute. Filling the store costs next to nothing,
every later run takes 59 % of the compute, and a single run of E epochs whose augmentations repeat after T takes
1 - 0.41 (1 - T / E): 63 % for T = 5 and E = 50, at the price of fewer augmentations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.train_images import TrainImages
from ..net.stitchable_net import StitchableNet
from ..utils.distributed import Ranks
from ..utils.seeds import seeded_libraries
from .answer import Answer, Question
from .answer_store import Store
from .compute_settings import TrainComputeSettings
from .distillation import DistillationSettings
from .mixup import MixupSettings
from .teacher import NONE, Teacher, teacher_identity, teacher_maker

_log = logging.getLogger(__name__)


class Answers:
    """Answers to the images of every step, replayed where they are stored and the teacher's own elsewhere.

    Args:
        make: makes the teacher, on the device of the images; called at once where an answer is missing, later only if a
            stored one turns out to be damaged.
        question: what the teacher is asked.
        store: None to ask the teacher every time.
        steps: the steps of the run, to see whether all are stored.

    Raises:
        SnnetError: the teacher is needed and cannot be had.
    """

    def __init__(
        self, make: Callable[[], Teacher], question: Question, store: Store | None = None, steps: range = range(0)
    ) -> None:
        self.make, self.question, self.store = make, question, store
        self._teacher: Teacher | None = None
        held = 0 if store is None else store.held(steps)
        if store is not None:
            _log.info('%d of %d batches have their teacher answers in %s', held, len(steps), store.folder)
        if store is None or held < len(steps):
            self._ask()

    def __call__(self, step: int, images: Tensor) -> Answer:
        """The answer to the images (N, C, H, W) of a step, on their device.

        Args:
            step: number of the batch: (virtual) epoch * batches per epoch + place in the epoch.
            images: as the student sees them, after Mixup and CutMix.

        Raises:
            SnnetError: the stored answers belong to other images, or the teacher is needed and cannot be had.
        """
        answer = None if self.store is None else self.store.get(step, images)
        if answer is None:
            answer = self.question.answer(self._ask()(images))
            if self.store is not None:
                self.store.put(step, answer, images)
        return answer

    def flush(self) -> None:
        """Writes what is not yet on disk: before a checkpoint, and at the end."""
        if self.store is not None:
            self.store.flush()

    def _ask(self) -> Teacher:
        if self._teacher is None:
            with seeded_libraries(0):  # building a network draws weights: later draws are the same without a teacher
                self._teacher = self.make()
        return self._teacher


def make_answers(
    settings: DistillationSettings,
    mixup: MixupSettings,
    compute: TrainComputeSettings,
    epochs: int,
    net: StitchableNet,
    images: TrainImages,
    ranks: Ranks,
) -> Answers | None:
    """The teacher's answers, from the store where one is named; None without a teacher.

    Args:
        settings: the teacher, and what it is asked.
        mixup: how images are mixed.
        compute: how the teacher runs.
        epochs: of the run.
        net: the student, before training.
        images: that it is trained on.
        ranks: of the run.

    Raises:
        SnnetError: the teacher cannot be had or does not fit the net, or the store holds other answers.
    """
    question = settings.question
    if settings.teacher == NONE:
        return None
    make = teacher_maker(settings.teacher, net)
    store = None
    if settings.teacher_store:
        identity = fingerprint(settings, mixup, compute, net, images.identity())
        store = Store(Path(settings.teacher_store), identity, ranks.rank)
    epochs = min(epochs, settings.teacher_epochs or epochs)
    return Answers(lambda: make().to(ranks.device), question, store, range(epochs * len(images)))


def fingerprint(
    settings: DistillationSettings,
    mixup: MixupSettings,
    compute: TrainComputeSettings,
    net: StitchableNet,
    images: dict[str, Any],
) -> dict[str, Any]:
    """What a store of the teacher's answers belongs to.

    Anchors, recipe and number of epochs are left out as far as the images do not depend on them, so that runs of
    different recipes share a store. What the files hold is left out too: `Store.get` compares a few pixels.

    Args:
        settings: the teacher, and what it is asked.
        mixup: how images are mixed.
        compute: how the teacher runs.
        net: before training, because the teacher may be its largest anchor.
        images: what their pixels follow from (see `TrainImages.identity`).

    Raises:
        SnnetError: there is no such teacher.
    """
    teacher, weights = teacher_identity(settings.teacher, net)
    question = settings.question
    soft = {'distill_topk': question.kept(net.num_classes), 'distill_tau': question.tau}
    return {
        **images,
        **{name: getattr(mixup, name) for name in ('mixup', 'cutmix', 'mixup_prob', 'mixup_switch_prob')},
        'num_classes': net.num_classes,
        'amp': compute.amp_dtype if compute.amp else 'off',
        'channels_last': compute.channels_last,
        'teacher': teacher,
        'teacher_weights': weights,
        'distill': settings.distill,
        **(soft if settings.distill == 'soft' else {}),
    }
