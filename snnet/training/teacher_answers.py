"""The teacher's answers, kept on disk: whoever shows a student the same images again asks no teacher.

Every draw of a run is keyed, so the images of a step follow from the settings, and so do the teacher's answers. The
first run that names a store fills it as it goes; later runs of other recipes, or later epochs where the augmentations
repeat (`teacher_epochs`), replay it. A live teacher's logits pass through the same compact `Answer`, so both ways agree
bit for bit.

Cost on disk for ImageNet, 1,281,167 images and 50 epochs of augmentations (5 epochs: a tenth):

| answers | bytes an image | 50 epochs | 5 epochs |
|---|---|---|---|
| hard, 1000 classes | 2 | 128 MB | 13 MB |
| soft, top 16 (indices of 2 bytes, 17 values of 2) | 66 | 4.2 GB | 423 MB |
| soft, all 1000 classes | 2000 | 128 GB | 12.8 GB |

When it pays: RegNetY-160 takes 16 GMACs an image, the mean stitch of DeiT-Ti/S/B 7.6 forward and about twice that
backward, 22.8 together, so the teacher is 16 / 38.8 = 41 % of the compute. Filling the store costs next to nothing,
every later run takes 59 % of the compute, and a single run of E epochs whose augmentations repeat after T takes
1 - 0.41 (1 - T / E): 63 % for T = 5 and E = 50, at the price of fewer augmentations.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import Any

from timm.data import resolve_data_config
from torch import Tensor
from torch.utils.data import Dataset

from ..config.parse import TrainSettings
from ..net.stitchable_net import StitchableNet
from ..utils.seeds import seeded_libraries
from .answer_store import Store
from .distillation import Answer, Question, Teacher, teacher_identity

_log = logging.getLogger(__name__)

DECIDING = (
    'dataset', 'train_split', 'batch_size', 'scale', 'ratio', 'hflip', 'color_jitter', 'aa', 'train_interpolation',
    'reprob', 'remode', 'aug_repeats', 'mixup', 'cutmix', 'mixup_prob', 'mixup_switch_prob', 'distill',
    'channels_last',
)  # fmt: skip
"""Settings that decide images or answers by their value; `fingerprint` holds what others come to."""


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
            step: number of the batch: (virtual) epoch * batches an epoch + place in the epoch.
            images: as the student sees them, mixed up if they are.

        Raises:
            SnnetError: the answers stored are to other images, or the teacher is needed and cannot be had.
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


def fingerprint(settings: TrainSettings, net: StitchableNet, dataset: Dataset[Any], world: int) -> dict[str, Any]:
    """What a store of the teacher's answers belongs to.

    Anchors, recipe and number of epochs are left out as far as the images do not depend on them, so that runs of
    different recipes share a store. What the files hold is left out too: `Store.get` compares a few pixels.

    Args:
        settings: of the run.
        net: before training, for the teacher may be its largest anchor.
        dataset: the training split.
        world: number of ranks.

    Raises:
        SnnetError: no such teacher.
    """
    config = resolve_data_config({'input_size': net.input_size}, model=net.anchor(0).model, verbose=False)
    teacher, weights = teacher_identity(settings.teacher, net)
    question = Question(settings.distill, settings.distill_topk, settings.distill_tau)
    soft = {'distill_topk': question.kept(net.num_classes), 'distill_tau': question.tau}
    return {
        'world': world,
        'files': _digest_of_names(dataset),
        **{name: config[name] for name in ('input_size', 'mean', 'std')},
        'num_classes': net.num_classes,
        'data_seed': settings.seed_of_data,
        'amp': settings.amp_dtype if settings.amp else 'off',
        'teacher': teacher,
        'teacher_weights': weights,
        **(soft if settings.distill == 'soft' else {}),
        **{name: getattr(settings, name) for name in DECIDING},
    }


def _digest_of_names(dataset: Any) -> str:
    """The number of images and, where timm reads them from files, a digest of the names below the root."""
    reader: Any = getattr(dataset, 'reader', None)
    samples = getattr(reader, 'samples', None)
    if not samples or not isinstance(samples[0][0], str):
        return f'{len(dataset)} images'
    root, digest = str(reader.root), hashlib.sha256()
    for path, *_ in samples:
        digest.update(path.removeprefix(root).lstrip('/').encode() + b'\n')
    return f'{len(dataset)} images, names {digest.hexdigest()[:32]}'
