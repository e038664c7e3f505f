"""The step of a run, put together from its settings."""

from __future__ import annotations

import logging
from dataclasses import replace

from torch import nn

from ..data.train_images import TrainImages
from ..errors import SnnetError
from ..net.stitchable_net import StitchableNet
from ..utils.distributed import Ranks
from .anchor_teachers import AnchorTeachers
from .class_weights import class_weights
from .distillation import DistillationLoss
from .loss import make_loss
from .mixup import MixupSettings, make_mixup
from .optimizer import make_optimizer, make_schedule
from .samplers import make_sampler
from .teacher import LARGEST, NONE
from .teacher_answers import make_answers
from .train_settings import TrainSettings
from .train_step import TrainStep

_log = logging.getLogger(__name__)


def make_step(settings: TrainSettings, net: StitchableNet, ranks: Ranks, images: TrainImages) -> TrainStep:
    """The step that the settings describe.

    Args:
        settings: of the run.
        net: the network to train, before training.
        ranks: of the run.
        images: that it is trained on.

    Raises:
        SnnetError: settings that do not go together; an epoch has fewer batches than one step needs.
    """
    updates = updates_per_epoch(len(images), settings.update.grad_accum_steps)
    moving = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    trainable = [i for i in range(len(net.stitches)) if moving & net.parameter_names(i)]
    if not trainable:
        raise SnnetError(f'there is nothing to train: {net.title} is frozen and has no stitch layers')
    sampling, distillation = settings.sampling, settings.distillation
    if settings.net.from_ and len(net.stitches) == 1 and distillation.teacher == LARGEST:
        distillation = replace(distillation, teacher=NONE)  # a single network would only learn from itself
    sampler = make_sampler(sampling, net, trainable, settings.seeds.seed)
    base = base_loss(settings.mixing, net, images, settings.mixing.mixes)
    criterion = DistillationLoss(base, distillation.distill_alpha, distillation.distill_tau)
    answers = make_answers(
        distillation, settings.mixing, settings.compute, settings.schedule.epochs, net, images, ranks
    )
    if distillation.teacher == LARGEST and not settings.net.learned:
        _log.warning("no weights were loaded, so the answers of the teacher 'largest' are random")
    protect = AnchorTeachers(net, distillation.protect_anchors) if distillation.protect_anchors else None
    optimizer = make_optimizer(net, settings.optimizer)
    return TrainStep(
        net,
        ranks,
        sampler,
        sampling.stitches_per_step,
        criterion.to(ranks.device),
        optimizer,
        make_schedule(optimizer, settings.schedule, updates),
        settings.update,
        settings.compute,
        settings.seeds,
        mixup=make_mixup(settings.mixing, net.num_classes),
        answers=answers,
        protect=protect,
    )


def base_loss(settings: MixupSettings, net: StitchableNet, images: TrainImages, mixed: bool) -> nn.Module:
    """The loss without a teacher, with the class weights that the settings ask for.

    Args:
        settings: of the loss.
        net: gives the number of classes.
        images: that it is trained on, whose classes are counted.
        mixed: whether Mixup or CutMix mixes the images.

    Raises:
        SnnetError: class weights that cannot be had.
    """
    asked = settings.class_weights
    return make_loss(settings, mixed, class_weights(asked, images.dataset, net.num_classes) if asked else None)


def updates_per_epoch(batches: int, together: int) -> int:
    """Steps in an epoch of so many batches, of which each step takes several together.

    Raises:
        SnnetError: there are fewer batches than one step takes.
    """
    if batches < together:
        raise SnnetError(
            f'an epoch has {batches} batches, fewer than the {together} of one update: '
            f'lower --grad-accum-steps or --batch-size'
        )
    return batches // together
