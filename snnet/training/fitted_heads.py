"""Heads before the first step of a run: fitted to the training images, and kept so that a resumed run has the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..anchors.new_head import linear_classifiers, mark_new_head
from ..calibration.fit_heads import HeadFit, fit_heads, head_features
from ..calibration.linear_probe import Criterion
from ..data.datasets import class_names, targets_of
from ..data.train_images import TrainImages
from ..data.unaugmented_images import initialization_images
from ..errors import SnnetError
from ..net.stitchable_net import StitchableNet
from ..utils.distributed import Ranks
from ..utils.files import write_atomically, write_tensors
from ..utils.progress import Progress
from .head_settings import HeadSettings
from .make_step import base_loss
from .train_settings import TrainSettings

_log = logging.getLogger(__name__)
HEADS = 'heads.safetensors'
"""The classifiers that a run began with, in its output folder."""


class FittedHeads:
    """The classifiers of a net's anchors, fitted by a linear probe or read from the folder of the run.

    Args:
        settings: how many images.
        net: its classifiers change.
        images: of the run.
        seed: draws the images.
        ranks: share the images; all end with equal classifiers.
        folder: of the run.
        criterion: mean loss of logits and classes.
        alive: called after every few images.

    Raises:
        SnnetError: a class with a single image.
    """

    def __init__(
        self,
        settings: HeadSettings,
        net: StitchableNet,
        images: TrainImages,
        seed: int,
        ranks: Ranks,
        folder: Path,
        criterion: Criterion,
        alive: Callable[[], object],
    ) -> None:
        self.net, self.path, self.ranks = net, folder / HEADS, ranks
        if self._read():
            return
        refuse_single_images(images.dataset, net.num_classes)
        batches, share = initialization_images(images.data, net, ranks, settings.head_samples, seed)
        progress = Progress(share, 'images for new heads', quiet=not ranks.first)

        def note(count: int) -> None:
            alive()
            progress.update(count)

        features, targets = head_features(net, batches, note)
        progress.close()
        everyone = ranks.gather(([(found.inputs, found.logits) for found in features], targets))
        features = [
            type(found)(
                [torch.cat([other[i][0][place] for other, _ in everyone]) for place in range(len(found.inputs))],
                torch.cat([other[i][1] for other, _ in everyone]),
            )
            for i, found in enumerate(features)
        ]
        for fit in fit_heads(net, features, torch.cat([other for _, other in everyone]), criterion, seed):
            _report(fit)
        alive()

    def write(self) -> None:
        """Keeps them in the folder of the run (first rank)."""
        if self.ranks.first:
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in self._tensors().items()}
            if tensors:
                write_atomically(self.path, lambda temporary: write_tensors(temporary, tensors))

    def _read(self) -> bool:
        """Takes the classifiers that the run began with; says whether they were there."""
        try:
            held = load_file(self.path)
        except (OSError, SafetensorError):
            return False
        own = self._tensors()
        if held.keys() != own.keys() or any(held[name].shape != own[name].shape for name in own):
            return False
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(held[name])
        for i in range(len(self.net.anchors)):
            if linear_classifiers(self.net.anchor(i).model):
                mark_new_head(self.net.anchor(i).model, False)
        return True

    def _tensors(self) -> dict[str, Tensor]:
        """Weights and biases of the linear maps of all classifiers."""
        return {
            f'{i}.{place}.{name}': tensor
            for i in range(len(self.net.anchors))
            for place, module in enumerate(linear_classifiers(self.net.anchor(i).model))
            for name, tensor in module.named_parameters(recurse=False)
        }


def make_fitted_heads(
    settings: TrainSettings, net: StitchableNet, images: TrainImages, ranks: Ranks, alive: Callable[[], object]
) -> Callable[[], None]:
    """Fits the heads of a net that is tuned to other images; a run without --from trains the heads that it has.

    Args:
        settings: of the run.
        net: its classifiers change.
        images: of the run.
        ranks: of the run.
        alive: called after every few images.

    Returns:
        Writes the heads into the folder of the run, once that may be written to.

    Raises:
        SnnetError: a class with a single image.
    """
    if not (settings.net.from_ and settings.heads.fit_heads):
        return lambda: None
    criterion = base_loss(settings.mixing, net, images, mixed=False).double()
    seed, folder = settings.seeds.seed, Path(settings.output)
    return FittedHeads(settings.heads, net, images, seed, ranks, folder, criterion, alive).write


def refuse_single_images(dataset: object, classes: int) -> None:
    """Refuses classes with one image, which cannot be fitted and judged.

    Raises:
        SnnetError: names them.
    """
    targets = targets_of(dataset)
    if targets is None:
        return
    names = class_names(dataset, classes)
    counts = torch.bincount(torch.tensor(targets), minlength=classes).tolist()
    single = [name for name, count in zip(names, counts, strict=True) if count == 1]
    if single:
        raise SnnetError(
            f'a class needs at least two training images, one to fit a head and one to judge it; '
            f'{", ".join(single[:5])}{f" and {len(single) - 5} more" if len(single) > 5 else ""} has one'
        )


def _report(fit: HeadFit) -> None:
    if fit.how == 'random':
        _log.warning(
            '%s: its classifier is not a linear layer, so it starts with random weights and is trained with the '
            'stitches', fit.anchor,
        )  # fmt: skip
    elif fit.how == 'kept':
        _log.info('%s keeps its head: %.1f %% of held-out training images right', fit.anchor, fit.before)
    else:
        _log.info(
            '%s: new head, %.1f %% of held-out training images right (before: %.1f %%)',
            fit.anchor, fit.after, fit.before,
        )  # fmt: skip
