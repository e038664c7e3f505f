"""Measures the similarity of a zoo: every network runs once over the images, and linear CKA is summed by batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..anchors.anchor import Anchor
from ..anchors.boundary import Boundary
from ..errors import SnnetError
from ..utils.eval_mode import eval_mode
from .cka import ESTIMATORS, HsicSums, as_matrix, gram
from .similarity import Similarity
from .zoo import check_zoo

_log = logging.getLogger(__name__)


def measure_similarity(
    anchors: Sequence[Anchor],
    batches: Iterable[Tensor | Sequence[Any]],
    *,
    pool: bool = False,
    estimator: str = 'unbiased',
    full: bool = False,
    all_reduce: Callable[[Tensor], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Similarity:
    """Linear CKA between all boundaries of all networks of a zoo, in eval mode.

    Every network runs once over the images. Of the features at a boundary only a Gram matrix (n, n) is kept, and only
    for one batch. Memory does not grow with the number of images.

    Args:
        anchors: the zoo.
        batches: images (n, C, H, W), or pairs that begin with them, prepared as for inference. A last batch that is
            too small for the estimator is joined to the one before.
        pool: compare the mean over the grid (without prefix tokens) instead of all features.
        estimator: one of `ESTIMATORS`.
        full: compare all images with each other, not only within a batch. This keeps all features: pool them.
        all_reduce: sums a tensor over ranks in place; each rank has different images.
        progress: called with the number of images after each batch.

    Raises:
        SnnetError: networks that cannot be compared (see `check_zoo`), images of another size or too few of them,
            features that are not finite, or an unknown estimator.
    """
    check_zoo(anchors)
    if full and all_reduce is not None:
        raise SnnetError('full CKA compares all images with each other: compute it in one process')
    boundaries = tuple((a.name, position) for a in anchors for position in range(len(a.boundaries)))
    labels = [f'the features of {name} at position {position}' for name, position in boundaries]
    sums = HsicSums(labels, estimator, next(anchors[0].parameters()).device)
    add = _add_all_images if full else _add_batches
    add(sums, anchors, batches, pool, progress)
    if all_reduce is not None:
        all_reduce(sums.total)
        all_reduce(sums.batches)
    if not int(sums.batches):
        raise SnnetError('no images to compare the networks with')
    return _similarity(sums, boundaries)


def _add_batches(
    sums: HsicSums,
    anchors: Sequence[Anchor],
    batches: Iterable[Tensor | Sequence[Any]],
    pool: bool,
    progress: Callable[[int], object] | None,
) -> None:
    for images in _joined(batches, ESTIMATORS[sums.estimator]):
        grams = sums.total.new_empty(len(sums.labels), len(images), len(images))
        for i, features in enumerate(_features(anchors, images, pool)):
            grams[i] = gram(features)
        sums.add(grams)
        if progress is not None:
            progress(len(images))


def _add_all_images(
    sums: HsicSums,
    anchors: Sequence[Anchor],
    batches: Iterable[Tensor | Sequence[Any]],
    pool: bool,
    progress: Callable[[int], object] | None,
) -> None:
    kept: list[list[Tensor]] = [[] for _ in sums.labels]
    for images in _joined(batches, 1):
        for parts, features in zip(kept, _features(anchors, images, pool), strict=True):
            parts.append(as_matrix(features))
        if progress is not None:
            progress(len(images))
    if kept[0]:
        sums.add_features([torch.cat(parts) for parts in kept])


def _similarity(sums: HsicSums, boundaries: tuple[tuple[str, int], ...]) -> Similarity:
    matrix = sums.cka().cpu().numpy()
    still = [f'{name} at position {position}' for i, (name, position) in enumerate(boundaries) if matrix[i, i] == 0]
    if still:
        _log.warning('features that are the same for every image are not similar to anything: %s', ', '.join(still))
    return Similarity(boundaries, matrix)


@torch.no_grad()
def _features(anchors: Sequence[Anchor], images: Tensor, pool: bool) -> Iterator[Tensor]:
    """Yields the features of every boundary while its network runs."""
    _check_images(images, anchors[0])
    for anchor in anchors:
        with eval_mode(anchor):
            x, at = images.to(next(anchor.parameters()).device), None
            for position, boundary in enumerate(anchor.boundaries):
                x = anchor.run(x, at, position)
                at = position
                yield _pooled(x, boundary) if pool else x


def _pooled(x: Tensor, boundary: Boundary) -> Tensor:
    """The mean over the grid (n, channels), without prefix tokens."""
    if boundary.layout == 'NLC':
        return x[:, boundary.prefix :].mean(1)
    return x.mean((2, 3) if boundary.layout == 'NCHW' else (1, 2))


def _joined(batches: Iterable[Tensor | Sequence[Any]], least: int) -> Iterator[Tensor]:
    """Yields the images of every batch; a last batch of fewer than `least` is joined to the one before."""
    held: Tensor | None = None
    for number, batch in enumerate(batches):
        images = batch if isinstance(batch, Tensor) else batch[0]
        if held is not None and len(held) < least:
            raise SnnetError(f'batch {number - 1} has {len(held)} images, but CKA needs at least {least} per batch')
        if held is not None and len(images) >= least:
            yield held
            held = None
        held = images if held is None else torch.cat([held, images])
    if held is not None and len(held) < least:
        raise SnnetError(f'CKA needs at least {least} images to compare networks with, {len(held)} given')
    if held is not None:
        yield held


def _check_images(images: Tensor, anchor: Anchor) -> None:
    if tuple(images.shape[1:]) != tuple(anchor.input_size):
        given, needed = ('x'.join(map(str, size)) for size in (images.shape[1:], anchor.input_size))
        raise SnnetError(f'the networks of the zoo take images of {needed}, but a batch holds images of {given}')
