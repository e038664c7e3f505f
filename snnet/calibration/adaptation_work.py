"""The work of `snnet.adapt`: what the fits of all stitches have in common, and the fits one after another."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
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
from .agreement import agreement_of, agreements, compare, mixed_agreements
from .blended_images import BlendedImages
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


class AdaptationWork:
    """What the fits of all stitches have in common.

    Args:
        net: receives what is kept.
        images: all of them (n, C, H, W).
        ids: of the stitches that are looked at.
        blends: of two images, to fit to beside each image that does not judge.
        seed: of the blends.
        cache_gb: most gigabytes of features to keep.
        quiet: show no progress.
        note: called with the number of updates after each.

    Attributes:
        images: those given, followed by blends of those that do not judge.
        judges: indices of the images that judge; blends never do.
        learners: indices of the others, blends among them.
        answers: of the largest anchor (len(images), classes).
        before: agreement of these stitches and of the anchors.
    """

    def __init__(
        self,
        net: StitchableNet,
        images: Tensor,
        ids: Sequence[int],
        blends: int,
        seed: int,
        cache_gb: float,
        quiet: bool,
        note: Callable[[int], object] | None = None,
    ) -> None:
        self.net, self.cache_gb, self.quiet, self.note = net, cache_gb, quiet, note
        judging = torch.arange(len(images)) % _JUDGES == _JUDGES - 1
        self.judges = judging.nonzero().squeeze(1)
        self.images = BlendedImages(images, (~judging).nonzero().squeeze(1), blends, seed)
        self.learners = torch.cat([(~judging).nonzero().squeeze(1), torch.arange(len(images), len(self.images))])
        self.answers = torch.cat([_largest(net, chunk) for chunk in self.images.chunks(_CHUNK)])
        chunks = [self.images[rows] for rows in torch.split(self.judges, _CHUNK)]
        answers = torch.split(self.answers[self.judges], _CHUNK)
        anchors = [record.stitch for record in net.records if record.anchor]
        self.before = agreements(net, {*anchors, *ids}, chunks, answers, quiet)
        self.mixed = mixed_agreements(net, self.before)
        self._front: tuple[Any, Tensor] | None = None

    def run(self, ids: Sequence[int], settings: FitSettings, minutes: float, done: FinishedStitches) -> Adaptation:
        """Fits stitches and says what came of it.

        Args:
            ids: of the stitches.
            settings: of the fits; with 0 steps, each stitch gets as many as fit into the minutes.
            minutes: about how long the updates may take.
            done: what an earlier call has done.
        """
        kind = ('several labels',) if self.net.several_labels else ()
        about = repr((settings, len(self.images), ids, None if settings.steps else minutes, *kind))
        done.open(hashlib.sha256(f'{about}{self._digest()}'.encode()).hexdigest()[:16])
        settings = replace(settings, steps=settings.steps or done.steps or self._affordable(ids, settings, minutes))
        done.begin(settings.steps)
        if not self.quiet:
            ways = ' and '.join(map(str, settings.ways))
            _log.info('adapting %d stitches: %d steps each, whole weights of %s blocks', len(ids), settings.steps, ways)
        progress = Progress(len(ids) * len(settings.ways) * settings.steps, 'steps', quiet=self.quiet)
        return self.report(self._fit_all(ids, settings, done, progress), settings.steps)

    def unchanged(self, stitch: int) -> AdaptedStitch:
        """A stitch as it is now."""
        record, now = self.net.records[stitch], self.before[stitch]
        return AdaptedStitch(stitch, record.legs, record.flops or 0, now, now, self.mixed[stitch])

    def report(self, rows: Sequence[AdaptedStitch], steps: int) -> Adaptation:
        """What was done, with the storage that it takes."""
        own, judging = self.net.own_parameters, len(self.judges)
        held = sum(parameter.numel() for parameter in self.net.parameters())
        return Adaptation(rows, (len(self.images.images) - judging, judging), steps, own.count() if own else 0, held)

    def _digest(self) -> str:
        """Tells apart what a fit depends on beside its settings: the net, with what stitches have, and the images."""
        return digest_of_tensors({**self.net.state_dict(), 'images': self.images.images})

    @torch.enable_grad()
    def _affordable(self, ids: Sequence[int], settings: FitSettings, minutes: float) -> int:
        """Steps of each stitch that fit into the time, by a timed step of each in every way."""
        seconds = 0.0
        batch = self.images[self.learners[: settings.batch_size]]
        answers = self.answers[self.learners[: settings.batch_size]]
        for stitch, blocks in product(ids, settings.ways):
            fit = StitchFit(self.net, stitch, blocks)
            fit.from_images = not self._is_kept(fit)
            x, optimizer = batch if fit.from_images else fit.front(batch), fit.optimizer(0.0)
            for _ in range(2):  # the first one is slower
                begin = time.perf_counter()
                fit.step(optimizer, x, answers, settings.temperature)
            seconds += time.perf_counter() - begin
        return max(1, int(_SHARE * 60 * minutes / seconds))

    def _fit_all(
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
                progress.update(len(settings.ways) * settings.steps)
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
        """Fits a stitch in all ways; no values where none of them made it better on the images that judge."""

        def note(steps: int) -> None:
            progress.update(steps, f'stitch {stitch}')
            if self.note is not None:
                self.note(steps)

        judged: list[Tensor] = []  # as it was, and after every way that was better than those before
        values: dict[str, Tensor] = {}
        for blocks in settings.ways:
            fit = StitchFit(self.net, stitch, blocks)
            features = self._features(fit)
            judged = judged or [self._judged(fit, features)]
            fit.fit(features, self.answers, self.learners, settings, note)
            new = self._judged(fit, features)
            if bool(new.isfinite().all()) and float(new[1].mean()) < float(judged[-1][1].mean()):
                judged.append(new)
                values = fit.values()
        record, mixed = self.net.records[stitch], self.mixed[stitch]
        before, after = agreement_of(judged[0]), agreement_of(judged[-1])
        count = sum(tensor.numel() for tensor in values.values())
        return AdaptedStitch(stitch, record.legs, record.flops or 0, before, after, mixed, bool(values), count), values

    @torch.no_grad()
    def _judged(self, fit: StitchFit, features: Tensor | BlendedImages) -> Tensor:
        """What `compare` says of each image that judges (2, n)."""
        rows = torch.split(self.judges, _CHUNK)
        several = self.net.several_labels
        return torch.cat([compare(fit.behind(features[chunk]), self.answers[chunk], several) for chunk in rows], 1)

    def _features(self, fit: StitchFit) -> Tensor | BlendedImages:
        """Features at the first join of all images and blends, kept for the next stitch with the same front."""
        tables = self.net.tables(fit.stitch)
        key = fit.legs[0], fit.stitch if tables is not None and tables[0] else None
        if self._front is None or self._front[0] != key:
            self._front = None  # first, so that two are never held
            if not self._is_kept(fit):
                fit.from_images = True
                return self.images
            self._front = key, torch.cat([fit.front(chunk) for chunk in self.images.chunks(_CHUNK)])
        return self._front[1]

    def _is_kept(self, fit: StitchFit) -> bool:
        """Whether features at the first join of all images are few enough to be kept."""
        first = fit.front(self.images[[0]])
        return first.numel() * first.element_size() * len(self.images) <= 1e9 * self.cache_gb


def collect_images(net: StitchableNet, batches: Iterable[Tensor | Sequence[Any]], samples: int) -> Tensor:
    """At most so many images (n, C, H, W) of batches, on the net's device and in its type.

    Raises:
        SnnetError: too few, or images of other channels than the net takes or with values that are not finite.
    """
    weight = next(net.parameters())
    found = image_chunks(batches, samples, samples, net.input_size[0])
    chunks = [images.to(weight.device, weight.dtype) for images, _ in found]
    count = sum(map(len, chunks))
    if count < 2 * _JUDGES:
        raise SnnetError(f'stitches are adapted with at least {2 * _JUDGES} images, some of which judge, not {count}')
    if not all(bool(chunk.isfinite().all()) for chunk in chunks):
        raise SnnetError('images hold values that are not finite, so nothing can be adapted to them')
    return torch.cat(chunks)


@torch.no_grad()
def _largest(net: StitchableNet, images: Tensor) -> Tensor:
    """Answers of the largest anchor (n, classes)."""
    name = net.anchor(len(net.anchors) - 1).name
    stitch = next((i for i, stitch in enumerate(net.stitches) if stitch.legs == (Leg(name),)), None)
    answers: Tensor = net.anchor(name).run(images) if stitch is None else net(images, stitch=stitch)
    return answers
