"""Stitches that answer as the largest anchor does, fitted one by one, without changing any anchor."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SnnetError
from ..net.own_parameters import check_merged
from ..net.predict import refuse_without_classes
from ..net.stitchable_net import StitchableNet
from ..utils.whole_number import whole_number
from .adaptation import Adaptation
from .adaptation_work import AdaptationWork, collect_images
from .finished_stitches import FinishedStitches
from .fit_stitch import FitSettings, fitted_names


@torch.inference_mode(False)
def adapt(
    net: StitchableNet, batches: Iterable[Tensor | Sequence[Any]], minutes: float = 10.0, *,
    steps: int | None = None, samples: int = 2000, blends: int = 3, stitches: Iterable[int] | None = None,
    blocks: int | None = None, batch_size: int = 64, lr: float = 2e-3, temperature: float = 2.0, storage: float = 1.0,
    cache_gb: float = 2.0, seed: int = 0, folder: str | Path | None = None, quiet: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Adaptation:  # fmt: skip
    """Brings stitches closer to the largest anchor: each gets a few parameters of its own, and no anchor changes.

    A stitch's own copy of its stitch layers, and of all scales, shifts and biases behind the join, learns to answer as
    the largest anchor does (the divergence of probabilities at a temperature; labels are not needed). Fronts are
    frozen, so their features and the answers are computed once. Every fourth image judges: a stitch whose divergence
    does not fall there stays as it was. `net(x, stitch=i)`, evaluation, `extract` and export use the result in eval
    mode, and it is saved with the net (`net.own_parameters`).

    Where images have several labels (`net.several_labels`), each class is a yes or no by itself: the divergence is the
    sum over the classes of that of two Bernoulli distributions.

    Args:
        net: with initialized stitch layers; it is put into eval mode.
        batches: images (n, C, H, W), or sequences that begin with them, normalized as for inference.
        minutes: about how long the updates may take; all stitches get the same number of steps.
        steps: updates of each stitch, in place of what the minutes allow; 0 only reports how close stitches come now.
        samples: most images to use.
        blends: of two images, to fit to beside each image (`BlendedImages`); fronts and the largest anchor answer them.
        stitches: ids; by default all that have a join. Those that have parameters of their own go on from there.
        blocks: modules behind each join whose whole weights belong to the stitch, too, at more storage. By default,
            each stitch is fitted twice, with none and with as many as `storage` allows; the images that judge choose.
        batch_size: images per step.
        lr: highest learning rate.
        temperature: by which logits are divided in the loss.
        storage: most own parameters of all stitches together, as a multiple of the parameters of the net.
        cache_gb: most gigabytes of features to keep; fronts that give more run at every step.
        seed: of the order of images and the blends; with a number of steps, it fixes the result on a CPU bit for bit.
        folder: keeps finished stitches, so that the same call goes on after an interruption; made where missing.
        quiet: show no progress.
        progress: called with the number of updates after each.

    Returns:
        Which stitches are worth having; prints as a table.

    Raises:
        SnnetError: no stitch with a join, fewer than eight images, a setting out of range, more storage than allowed,
            or a folder that holds the work of another call.
        UnknownStitch: no such id.
    """
    steps = None if steps is None else whole_number('steps', steps, 0)
    batch_size, samples = whole_number('batch_size', batch_size, 1), whole_number('samples', samples, 1)
    blends = whole_number('blends', blends, 0)
    check_positive(minutes=minutes, lr=lr, temperature=temperature, storage=storage, cache_gb=cache_gb or None)
    ids = adaptable(net, stitches, blocks, storage)
    net.eval()
    pool, blends = collect_images(net, batches, samples), blends if steps != 0 else 0
    work = AdaptationWork(net, pool, ids, blends, seed, cache_gb, quiet, progress)
    if steps == 0:
        return work.report([work.unchanged(stitch) for stitch in ids], 0)
    settings = FitSettings(steps or 0, batch_size, lr, temperature, _ways(net, ids, blocks, storage), seed)
    return work.run(ids, settings, minutes, FinishedStitches(folder))


def check_positive(**settings: float | None) -> None:
    """Refuses numbers that are not above 0, or not finite; None is not looked at.

    Raises:
        SnnetError: names the first of them.
    """
    for name, value in settings.items():
        if value is not None and not 0 < value < math.inf:
            raise SnnetError(f'{name} is a positive finite number, not {value}')


def adaptable(
    net: StitchableNet,
    stitches: Iterable[int] | None = None,
    blocks: int | None = None,
    storage: float = 1.0,
    remedy: str = 'stitches= (--stitches of snnet adapt) names fewer of them, storage= (--storage) allows more',
) -> list[int]:
    """The stitches that `adapt` would fit with these arguments; nothing is computed.

    Args:
        net, stitches, blocks, storage: as for `adapt`.
        remedy: what a user can do where more storage would be needed than is allowed.

    Raises:
        SnnetError: no classes, no stitch with a join, a net whose branches or low-rank updates are not merged yet, or
            more storage than allowed.
        UnknownStitch: no such id.
    """
    blocks = whole_number('blocks', blocks or 0, 0)
    refuse_without_classes(net)
    ids = sorted({net.checked(i) for i in (range(len(net.stitches)) if stitches is None else stitches)})
    alone = [stitch for stitch in ids if len(net.stitches[stitch].legs) == 1]
    if stitches is not None and alone:
        raise SnnetError(f'stitch {alone[0]} ({net.stitches[alone[0]]}) has no join, so there is nothing to adapt')
    ids = [stitch for stitch in ids if stitch not in alone]
    if not ids:
        raise SnnetError(f'{net.title} has no stitch with a join, so there is nothing to adapt')
    check_merged(net)
    _check_storage(net, ids, blocks, storage, f'fewer blocks take less; {remedy}' if blocks else remedy)
    return ids


def _check_storage(net: StitchableNet, ids: Sequence[int], blocks: int, storage: float, remedy: str) -> None:
    held = sum(parameter.numel() for parameter in net.parameters())
    own = _own_count(net, ids, blocks)
    if own > storage * held:
        raise SnnetError(
            f'{len(ids)} stitches would have {own / 1e6:.4g} M parameters of their own, {own / held:.2f} times those '
            f'of the net, and {storage * held / 1e6:.4g} M (storage={storage:g}) are allowed: {remedy}'
        )


def _ways(net: StitchableNet, ids: Sequence[int], blocks: int | None, storage: float) -> tuple[int, ...]:
    """Numbers of modules behind each join whose whole weights are fitted: the given one, or 0 and the most allowed."""
    if blocks is not None:
        return (whole_number('blocks', blocks, 0),)
    held = sum(parameter.numel() for parameter in net.parameters())
    numbers = range(1, 1 + max(len(net.anchor(i).line()) for i in range(len(net.anchors))))
    most = bisect_right(numbers, storage * held, key=lambda blocks: _own_count(net, ids, blocks))
    return (0, most) if most else (0,)


def _own_count(net: StitchableNet, ids: Sequence[int], blocks: int) -> int:
    """Parameters that stitches would have for themselves."""
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters(remove_duplicate=False)}
    return sum(sizes[name] for stitch in ids for names in fitted_names(net, stitch, blocks) for name in names)
