"""Similarity of the features at all boundaries of a zoo: linear CKA in one streaming pass over images (see cka.py)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..anchors.anchor import Anchor
from ..anchors.boundary import Boundary
from ..errors import SnnetError
from ..stitching.stitch import Leg
from ..utils.files import write_atomically, write_tensors
from ..utils.modes import eval_mode
from .cka import ESTIMATORS, HsicSums, as_matrix, gram
from .zoo import check_zoo

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Similarity:
    """Similarity s of the features at all boundaries of a zoo.

    Attributes:
        boundaries: name of the network and position of each, network by network, from position 0 on.
        matrix: (boundaries, boundaries), float64, symmetric; 1 on its diagonal. Unbiased values may lie below 0.
            Features that do not vary from image to image are similar to nothing: 0, on the diagonal too.
    """

    boundaries: tuple[tuple[str, int], ...]
    matrix: np.ndarray

    def __post_init__(self) -> None:
        lengths: dict[str, int] = {}
        for name, position in self.boundaries:
            if position != lengths.get(name, 0) or (position and name != list(lengths)[-1]):
                raise SnnetError(f'position {position} of {name} is out of its place in the list of boundaries')
            lengths[name] = position + 1
        if self.matrix.shape != (len(self.boundaries),) * 2:
            raise SnnetError(f'{len(self.boundaries)} boundaries need a square matrix, not one of {self.matrix.shape}')
        if not np.isfinite(self.matrix).all():
            raise SnnetError('the similarity of two boundaries is not a finite number')

    @property
    def positions(self) -> dict[str, int]:
        """Of each network, its number of positions (one more than its line has modules)."""
        return {name: position + 1 for name, position in self.boundaries}

    def span(self, network: str) -> slice:
        """Rows of a network's positions.

        Raises:
            SnnetError: it is not in the zoo.
        """
        counts = self.positions
        if network not in counts:
            raise SnnetError(f"'{network}' is not in the zoo of {', '.join(counts)}")
        first = self.boundaries.index((network, 0))
        return slice(first, first + counts[network])

    def between(self, network: str, other: str) -> np.ndarray:
        """Similarity of the positions of two networks (positions of the one, positions of the other)."""
        return self.matrix[self.span(network), self.span(other)]

    def functional(self, block: Leg, other: Leg) -> float:
        """Functional similarity of two blocks, S = s(inputs) + s(outputs), from 0 to 2 (the paper's Definition 3).

        A block is a leg; one that starts at the image or ends in the logits is taken from its first position or to
        its last.
        """
        between = self.between(block.anchor, other.anchor)
        last = [size - 1 for size in between.shape]
        starts = between[block.start or 0, other.start or 0]
        stops = [end if leg.stop is None else leg.stop for leg, end in zip((block, other), last, strict=True)]
        return float(starts + between[stops[0], stops[1]])

    def save(self, path: Path) -> None:
        """Writes a safetensors file, whole or not at all."""
        tensors = {'matrix': torch.from_numpy(np.ascontiguousarray(self.matrix))}
        write_atomically(path, lambda file: write_tensors(file, tensors, {'boundaries': json.dumps(self.boundaries)}))

    @classmethod
    def load(cls, path: Path) -> Similarity:
        """Reads what `save` wrote.

        Raises:
            SnnetError: the file is missing, damaged or something else.
        """
        try:
            with safe_open(path, 'pt') as file:
                boundaries = json.loads((file.metadata() or {})['boundaries'])
                matrix = file.get_tensor('matrix').double().numpy()
            return cls(tuple((str(name), int(position)) for name, position in boundaries), matrix)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise SnnetError(f"'{path}' is no file of similarities: {str(error) or type(error).__name__}") from None


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

    Every network runs once over the images; of each boundary's features only a Gram matrix is kept, and that only for
    one batch. The result comes from one matrix of the size of `Similarity.matrix`, whatever the number of images.

    Args:
        anchors: the zoo.
        batches: images (n, C, H, W), or pairs whose first item they are, prepared as for inference. A last batch that
            is too small for the estimator joins the one before.
        pool: compare the mean over the grid (without prefix tokens) in place of all features.
        estimator: one of `ESTIMATORS`.
        full: compare all images with each other and not only those of one batch. Keeps all features: pool them.
        all_reduce: adds a tensor up over ranks in place, each of which has images of its own.
        progress: is told the number of images after each batch.

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
    (_add_whole if full else _add_batches)(sums, anchors, batches, pool, progress)
    if all_reduce is not None:
        all_reduce(sums.total)
        all_reduce(sums.batches)
    if not int(sums.batches):
        raise SnnetError('no images to compare the networks with')
    return _finished(sums, boundaries)


def _add_batches(
    sums: HsicSums,
    anchors: Sequence[Anchor],
    batches: Iterable[Tensor | Sequence[Any]],
    pool: bool,
    progress: Callable[[int], object] | None,
) -> None:
    """Adds every batch by the Grams of its features."""
    for images in _joined(batches, ESTIMATORS[sums.estimator]):
        grams = sums.total.new_empty(len(sums.labels), len(images), len(images))
        for i, features in enumerate(_features(anchors, images, pool)):
            grams[i] = gram(features)
        sums.add(grams)
        if progress is not None:
            progress(len(images))


def _add_whole(
    sums: HsicSums,
    anchors: Sequence[Anchor],
    batches: Iterable[Tensor | Sequence[Any]],
    pool: bool,
    progress: Callable[[int], object] | None,
) -> None:
    """Adds all images as one batch."""
    kept: list[list[Tensor]] = [[] for _ in sums.labels]
    for images in _joined(batches, 1):
        for parts, features in zip(kept, _features(anchors, images, pool), strict=True):
            parts.append(as_matrix(features))
        if progress is not None:
            progress(len(images))
    if kept[0]:
        sums.add_features([torch.cat(parts) for parts in kept])


def _finished(sums: HsicSums, boundaries: tuple[tuple[str, int], ...]) -> Similarity:
    matrix = sums.cka().cpu().numpy()
    still = [f'{name} at position {position}' for i, (name, position) in enumerate(boundaries) if matrix[i, i] == 0]
    if still:
        _log.warning('features that are the same for every image are similar to nothing: %s', ', '.join(still))
    return Similarity(boundaries, matrix)


@torch.no_grad()
def _features(anchors: Sequence[Anchor], images: Tensor, pool: bool) -> Iterator[Tensor]:
    """Features of every boundary in turn, while its network runs."""
    _check_images(images, anchors[0])
    for anchor in anchors:
        with eval_mode(anchor):
            x, at = images.to(next(anchor.parameters()).device), None
            for position, boundary in enumerate(anchor.boundaries):
                x = anchor.run(x, at, position)
                at = position
                yield _pooled(x, boundary) if pool else x


def _pooled(x: Tensor, boundary: Boundary) -> Tensor:
    """The mean over the grid (n, channels); prefix tokens stand for no place in it."""
    if boundary.layout == 'NLC':
        return x[:, boundary.prefix :].mean(1)
    return x.mean((2, 3) if boundary.layout == 'NCHW' else (1, 2))


def _joined(batches: Iterable[Tensor | Sequence[Any]], least: int) -> Iterator[Tensor]:
    """The images of every batch; a last batch of fewer than `least` is joined to the one before."""
    held: Tensor | None = None
    for number, batch in enumerate(batches):
        images = batch if isinstance(batch, Tensor) else batch[0]
        if held is not None and len(held) < least:
            raise SnnetError(f'batch {number - 1} has {len(held)} images, but CKA needs at least {least} in each')
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
