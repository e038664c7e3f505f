"""New classifiers for the anchors of a net: a linear probe on what reaches the classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anchors.anchor import Anchor
from ..anchors.new_head import has_new_head, linear_classifiers, mark_new_head
from ..net.stitchable_net import StitchableNet
from ..utils.eval_mode import eval_mode
from .linear_probe import Criterion, fit_probe, hold_out


@dataclass(frozen=True)
class AnchorFeatures:
    """What one pass over images gives for an anchor.

    Attributes:
        inputs: of each linear map of its classifier (N, D); none where there is no such map.
        logits: of its classifier as it is (N, classes).
    """

    inputs: list[Tensor]
    logits: Tensor


@dataclass(frozen=True)
class HeadFit:
    """How an anchor came by its classifier.

    Attributes:
        anchor: its name.
        how: 'fitted', 'kept' (its own does better on held-out images), or 'random' (it is not a linear map).
        before: accuracy of its own classifier on held-out images, in percent.
        after: accuracy there of the classifier that was fitted without them.
        ridge: that the fit took.
    """

    anchor: str
    how: str
    before: float
    after: float
    ridge: float


@torch.no_grad()
def head_features(
    net: StitchableNet, batches: Iterable[tuple[Tensor, Tensor]], progress: Callable[[int], object] | None = None
) -> tuple[list[AnchorFeatures], Tensor]:
    """Runs images through all anchors; returns what reaches their classifiers, and the classes or labels.

    Args:
        net: the net, which runs in eval mode.
        batches: images (n, C, H, W) and classes (n,).
        progress: called with the images of each batch.
    """
    anchors = [net.anchor(i) for i in range(len(net.anchors))]
    inputs: list[list[list[Tensor]]] = [[] for _ in anchors]
    logits: list[list[Tensor]] = [[] for _ in anchors]
    classes = []
    with eval_mode(net):
        for images, targets in batches:
            for i, anchor in enumerate(anchors):
                with _seen_inputs(anchor) as seen:
                    logits[i].append(anchor(images).float().cpu())
                inputs[i].append([x.flatten(1).float().cpu() for x in seen.values()])
            classes.append(targets.cpu())
            if progress is not None:
                progress(len(images))
    found = [
        AnchorFeatures([torch.cat(parts) for parts in zip(*rows, strict=True)], torch.cat(answers))
        for rows, answers in zip(inputs, logits, strict=True)
    ]
    return found, torch.cat(classes)


@torch.no_grad()
def fit_heads(
    net: StitchableNet,
    features: list[AnchorFeatures],
    targets: Tensor,
    criterion: Criterion = F.cross_entropy,
    seed: int = 0,
) -> list[HeadFit]:
    """Gives each anchor the better of two classifiers: its own, or a linear probe.

    A classifier that is new is always replaced. What decides otherwise is the accuracy on held-out images, or the
    loss where they are equally accurate; so a classifier that was learned for the same classes stays.

    Args:
        net: its anchors' classifiers change.
        features: of each anchor (see `head_features`).
        targets: classes (N,), or labels (N, classes).
        criterion: mean loss of logits and classes.
        seed: draws the images that judge.

    Raises:
        SnnetError: a class with a single image.
    """
    held = hold_out(targets, seed)
    return [_fit_head(net.anchor(i), found, targets, held, criterion) for i, found in enumerate(features)]


def _fit_head(anchor: Anchor, found: AnchorFeatures, targets: Tensor, held: Tensor, criterion: Criterion) -> HeadFit:
    before = _accuracy(found.logits[held], targets[held])
    if not found.inputs:
        return HeadFit(anchor.name, 'random' if has_new_head(anchor.model) else 'kept', before, before, 0.0)
    probes = [fit_probe(x, targets, anchor.num_classes, held, criterion) for x in found.inputs]
    after = _accuracy(torch.stack([probe.judged for probe in probes]).mean(dim=0), targets[held])
    own = before, -float(criterion(found.logits[held].double(), targets[held]))
    if not has_new_head(anchor.model) and own >= (after, -min(probe.loss for probe in probes)):
        return HeadFit(anchor.name, 'kept', before, after, probes[0].ridge)
    for module, probe in zip(linear_classifiers(anchor.model), probes, strict=True):
        _fill(module, probe.weight, probe.bias)
    mark_new_head(anchor.model, False)
    return HeadFit(anchor.name, 'fitted', before, after, probes[0].ridge)


def _accuracy(logits: Tensor, targets: Tensor) -> float:
    """Share of images whose most likely class is theirs, or among their labels, in percent."""
    best = logits.argmax(dim=1)
    right = best == targets if targets.ndim == 1 else targets.gather(1, best[:, None])[:, 0] > 0
    return 100 * float(right.double().mean())


def _fill(module: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Puts a linear map into a module."""
    assert module.bias is not None  # see `linear_classifiers`
    module.weight.copy_(weight.view(module.weight.shape))
    module.bias.copy_(bias)


@contextmanager
def _seen_inputs(anchor: Anchor) -> Iterator[dict[int, Tensor]]:
    """What reaches each linear map of an anchor's classifier inside a `with` block, by its place."""
    seen: dict[int, Tensor] = {}

    def note(place: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[place] = inputs[0]

        return look

    with ExitStack() as stack:
        for place, module in enumerate(linear_classifiers(anchor.model)):
            stack.callback(module.register_forward_pre_hook(note(place)).remove)
        yield seen
