"""Stitches that answer as the largest anchor does, fitted one by one, without changing any anchor."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SnnetError
from ..net.own_parameters import OwnParameters
from ..net.stitchable_net import StitchableNet
from ..stitching.stitch import Leg
from ..utils.digest import digest_of_tensors
from ..utils.progress import Progress
from .adaptation import Adaptation, AdaptedStitch
from .agreement import Agreement, agreement_of, agreements, compare, mixed_agreements
from .finished_stitches import FinishedStitches
from .fit_stitch import FitSettings, StitchFit
from .image_chunks import image_chunks

_log = logging.getLogger(__name__)
_CHUNK = 100
"""Images that run at a time without gradients."""
_JUDGES = 4
"""Every so many images one judges."""
_SHARE = 0.9
"""Of the time that is given, what the updates may take; fronts, judging and reports take the rest."""


@torch.inference_mode(False)
def adapt(
    net: StitchableNet,
    batches: Iterable[Tensor | Sequence[Any]],
    minutes: float = 10.0,
    *,
    steps: int | None = None,
    samples: int = 2000,
    stitches: Iterable[int] | None = None,
    blocks: int = 0,
    batch_size: int = 64,
    lr: float = 2e-3,
    temperature: float = 2.0,
    storage: float = 1.0,
    cache_gb: float = 2.0,
    seed: int = 0,
    folder: str | Path | None = None,
    quiet: bool = False,
) -> Adaptation:
    """Brings stitches closer to the largest anchor: each gets a few parameters of its own, and no anchor changes.

    A stitch's own copy of its stitch layers, and of all scales, shifts and biases behind the join, learns to answer as
    the largest anchor does (the divergence of probabilities at a temperature; labels are not needed). Fronts are
    frozen, so their features and the answers are computed once. Every fourth image judges: a stitch whose divergence
    does not fall there stays as it was. What a stitch has got is used in eval mode by `net(x, stitch=i)`, evaluation,
    `extract` and export, and is saved with the net (`net.own_parameters`).

    A seed and a number of steps fix the result on a CPU bit for bit.

    Args:
        net: with initialized stitch layers; it is put into eval mode.
        batches: images (n, C, H, W), or sequences that begin with them, normalized as for inference.
        minutes: about how long the updates may take; all stitches get the same number of steps.
        steps: updates of each stitch, in place of what the minutes allow; 0 fits nothing and only reports how close
            the stitches come to the largest anchor now.
        samples: most images to use.
        stitches: ids; by default all that have a join. Those that have parameters of their own go on from there.
        blocks: modules behind each join whose whole weights belong to the stitch, too, at more storage.
        batch_size: images per step.
        lr: highest learning rate.
        temperature: by which logits are divided in the loss.
        storage: most own parameters of all stitches together, as a multiple of the parameters of the net.
        cache_gb: most gigabytes of features to keep; fronts that give more run at every step.
        seed: of the order of images.
        folder: keeps the stitches that are done, so that the same call goes on after an interruption; made where it is
            missing.
        quiet: show no progress.

    Returns:
        Which stitches are worth having; prints as a table.

    Raises:
        SnnetError: no stitch with a join, fewer than eight images, a setting out of range, more storage than allowed,
            or a folder that holds the work of another call.
        UnknownStitch: no such id.
    """
    _check(minutes=minutes, steps=steps or None, batch_size=batch_size, lr=lr, temperature=temperature, storage=storage)
    ids = _chosen(net, stitches)
    net.eval()
    _check_storage(net, ids, blocks, storage)
    images = _collected(net, batches, samples)
    judges = torch.arange(len(images)) % _JUDGES == _JUDGES - 1
    answers = torch.cat([_largest(net, chunk) for chunk in torch.split(images, _CHUNK)])  # (n, classes)
    before = agreements(
        net, range(len(net.stitches)), torch.split(images[judges], _CHUNK), torch.split(answers[judges], _CHUNK), quiet
    )
    work = _AdaptationWork(net, images, answers, judges, cache_gb, before)
    if steps == 0:
        return work.report([work.unchanged(stitch) for stitch in ids], 0)
    done = FinishedStitches(folder)
    settings = FitSettings(steps or 0, batch_size, lr, temperature, blocks, seed)
    about = repr((settings, ids, None if steps else minutes))
    done.open(hashlib.sha256(f'{about}{work.digest()}'.encode()).hexdigest()[:16])
    settings = replace(settings, steps=steps or done.steps or work.affordable(ids, settings, minutes))
    done.begin(settings.steps)
    if not quiet:
        _log.info('adapting %d stitches with %d steps each', len(ids), settings.steps)
    rows = work.run(ids, settings, done, Progress(len(ids) * settings.steps, 'steps', quiet=quiet))
    return work.report(rows, settings.steps)


class _AdaptationWork:
    """What the fits of all stitches have in common.

    Args:
        net: receives what is kept.
        images: all of them (n, C, H, W).
        answers: of the largest anchor (n, classes).
        judges: which images judge (n,).
        cache_gb: most gigabytes of features to keep.
        before: agreement of every stitch.
    """

    def __init__(
        self,
        net: StitchableNet,
        images: Tensor,
        answers: Tensor,
        judges: Tensor,
        cache_gb: float,
        before: dict[int, Agreement],
    ) -> None:
        self.net, self.images, self.answers, self.judges = net, images, answers, judges
        self.cache_gb, self.before = cache_gb, before
        self.mixed = mixed_agreements(net, before)
        self._front: tuple[Any, Tensor] | None = None

    def unchanged(self, stitch: int) -> AdaptedStitch:
        """A stitch as it is now."""
        record, now = self.net.records[stitch], self.before[stitch]
        return AdaptedStitch(stitch, record.legs, record.flops or 0, now, now, self.mixed[stitch])

    def report(self, rows: Sequence[AdaptedStitch], steps: int) -> Adaptation:
        """What was done, with the storage that it takes."""
        own, judging = self.net.own_parameters, int(self.judges.sum())
        held = sum(parameter.numel() for parameter in self.net.parameters())
        return Adaptation(rows, (len(self.judges) - judging, judging), steps, own.count() if own else 0, held)

    def digest(self) -> str:
        """Tells apart what a fit depends on beside its settings: the net, with what stitches have, and the images."""
        return digest_of_tensors({**self.net.state_dict(), 'images': self.images})

    @torch.enable_grad()
    def affordable(self, ids: Sequence[int], settings: FitSettings, minutes: float) -> int:
        """Steps of each stitch that fit into the time, by a timed step of each."""
        seconds = 0.0
        batch = self.images[~self.judges][: settings.batch_size]
        for stitch in ids:
            fit = StitchFit(self.net, stitch, settings.blocks)
            x, optimizer = fit.front(batch), fit.optimizer(0.0)
            for _ in range(2):  # the first one is slower
                begin = time.perf_counter()
                fit.step(optimizer, x, self.answers[~self.judges][: len(batch)], settings.temperature)
            seconds += time.perf_counter() - begin
        return max(1, int(_SHARE * 60 * minutes / seconds))

    def run(
        self, ids: Sequence[int], settings: FitSettings, done: FinishedStitches, progress: Progress
    ) -> list[AdaptedStitch]:
        """Fits every stitch that is not done yet, those with the same front one after another."""
        rows = []
        own = dict(self.net.own_parameters.values if self.net.own_parameters else {})
        for stitch in sorted(ids, key=lambda i: (str(self.net.stitches[i].legs[0]), i)):
            found = done.read(stitch)
            if found is None:
                found = self._fit(stitch, settings, progress)
                done.write(*found)
            else:
                progress.update(settings.steps)
            row, values = found
            rows.append(row)
            if values:
                own[stitch] = {**own.get(stitch, {}), **values}
        progress.close()
        weight = next(self.net.parameters())
        moved = {i: {name: tensor.to(weight.device) for name, tensor in values.items()} for i, values in own.items()}
        self.net.set_own_parameters(OwnParameters(self.net, moved))
        return sorted(rows, key=lambda row: row.stitch)

    def _fit(self, stitch: int, settings: FitSettings, progress: Progress) -> tuple[AdaptedStitch, dict[str, Tensor]]:
        """Fits a stitch; no values where it did not become better on the images that judge."""
        fit = StitchFit(self.net, stitch, settings.blocks)
        features = self._features(fit)
        old = self._judged(fit, features)
        rows = (~self.judges).nonzero().squeeze(1)
        fit.fit(features, self.answers, rows, settings, lambda steps: progress.update(steps, f'stitch {stitch}'))
        new = self._judged(fit, features)
        kept = bool(new.isfinite().all()) and float(new[1].mean()) < float(old[1].mean())
        after = agreement_of(new if kept else old)
        record, values = self.net.records[stitch], fit.values() if kept else {}
        count = sum(tensor.numel() for tensor in values.values())
        before, mixed = agreement_of(old), self.mixed[stitch]
        return AdaptedStitch(stitch, record.legs, record.flops or 0, before, after, mixed, kept, count), values

    @torch.no_grad()
    def _judged(self, fit: StitchFit, features: Tensor) -> Tensor:
        """What `compare` says of each image that judges (2, n)."""
        rows = torch.split(self.judges.nonzero().squeeze(1), _CHUNK)
        return torch.cat([compare(fit.behind(features[chunk]), self.answers[chunk]) for chunk in rows], 1)

    def _features(self, fit: StitchFit) -> Tensor:
        """Features at the first join of all images, kept for the next stitch with the same front."""
        tables = self.net.tables(fit.stitch)
        key = fit.legs[0], fit.stitch if tables is not None and tables[0] else None
        if self._front is None or self._front[0] != key:
            self._front = None  # first, so that two are never held
            first = fit.front(self.images[:1])
            if first.numel() * first.element_size() * len(self.images) > 1e9 * self.cache_gb:
                fit.from_images = True
                return self.images
            self._front = key, torch.cat([fit.front(chunk) for chunk in torch.split(self.images, _CHUNK)])
        return self._front[1]


def _check(**settings: float | None) -> None:
    for name, value in settings.items():
        if value is not None and not 0 < value < math.inf:
            raise SnnetError(f'{name} is a positive finite number, not {value}')


def _chosen(net: StitchableNet, stitches: Iterable[int] | None) -> list[int]:
    ids = sorted({net.checked(i) for i in (range(len(net.stitches)) if stitches is None else stitches)})
    alone = [stitch for stitch in ids if len(net.stitches[stitch].legs) == 1]
    if stitches is not None and alone:
        raise SnnetError(f'stitch {alone[0]} ({net.stitches[alone[0]]}) has no join, so there is nothing to adapt')
    ids = [stitch for stitch in ids if stitch not in alone]
    if not ids:
        raise SnnetError(f'{net.title} has no stitch with a join, so there is nothing to adapt')
    return ids


def _check_storage(net: StitchableNet, ids: Sequence[int], blocks: int, storage: float) -> None:
    """Refuses more own parameters than allowed, before anything is computed."""
    if blocks < 0:
        raise SnnetError(f'blocks is a number of modules from 0, not {blocks}')
    held = sum(parameter.numel() for parameter in net.parameters())
    own = sum(sum(p.numel() for p in StitchFit(net, stitch, blocks).parameters.values()) for stitch in ids)
    if own > storage * held:
        raise SnnetError(
            f'{len(ids)} stitches would have {own / 1e6:.4g} M parameters of their own, {own / held:.2f} times those '
            f'of the net, but storage={storage:g} allows {storage * held / 1e6:.4g} M: give fewer stitches or blocks'
        )


def _collected(net: StitchableNet, batches: Iterable[Tensor | Sequence[Any]], samples: int) -> Tensor:
    """The images (n, C, H, W) on the net's device and in its type."""
    weight = next(net.parameters())
    chunks = [images.to(weight.device, weight.dtype) for images, _ in image_chunks(batches, samples, samples)]
    count = sum(map(len, chunks))
    if count < 2 * _JUDGES:
        raise SnnetError(f'stitches are adapted with at least {2 * _JUDGES} images, some of which judge, not {count}')
    return torch.cat(chunks)


@torch.no_grad()
def _largest(net: StitchableNet, images: Tensor) -> Tensor:
    """Answers of the largest anchor (n, classes)."""
    name = net.anchor(len(net.anchors) - 1).name
    stitch = next((i for i, stitch in enumerate(net.stitches) if stitch.legs == (Leg(name),)), None)
    answers: Tensor = net.anchor(name).run(images) if stitch is None else net(images, stitch=stitch)
    return answers
