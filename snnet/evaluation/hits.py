"""Correct answers and losses of many stitches, image by image, so that two stitches can be compared in pairs."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from ..budget.record import Record
from ..utils.files import write_atomically, write_tensors
from ..utils.typed_json import parse_json
from .per_class import mean_per_class

_log = logging.getLogger(__name__)

HITS = 'hits.safetensors'
"""File with one bit per image and stitch, beside the results: 444 kB for 71 stitches and 50,000 images."""

_SUMS = 4
"""Columns before those of the images: right answers, right ones among the best five, loss, images."""
_ROWS = 2
"""Rows behind those of the stitches, with a column per image: its class, and the answer of the confused stitch."""


def score(logits: Tensor, targets: Tensor, row: Tensor, first: int) -> None:
    """Puts a batch into a row of a window (see `Tally.window`).

    Args:
        logits: (N, classes).
        targets: classes (N,); or labels (N, classes), any of which is right, with the binary loss.
        row: of the stitch.
        first: place of the batch among the images of the window.
    """
    logits = logits.float()
    top = logits.topk(min(5, logits.shape[1])).indices
    if targets.ndim == 1:
        best = top == targets[:, None]
        losses = F.cross_entropy(logits, targets, reduction='none')
    else:
        best = targets.gather(1, top) > 0
        losses = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction='none').mean(dim=1)
    row[0], row[1], row[3] = best[:, 0].sum(), best.any(dim=1).sum(), len(targets)
    row[2] = losses.double().sum()
    row[_SUMS + first : _SUMS + first + len(targets)] = best[:, 0]


def note_answers(targets: Tensor, answers: Tensor | None, window: Tensor, first: int) -> None:
    """Puts the classes of a batch into a window, and the answers of the stitch whose confusion was asked for.

    Args:
        targets: classes (N,); several labels of an image are not kept, but noted as -1.
        answers: classes that the stitch takes for the most likely (N,), if one was asked for.
        window: see `Tally.window`.
        first: place of the batch among the images of the window.
    """
    place = slice(_SUMS + first, _SUMS + first + len(targets))
    window[-2, place] = targets.to(window.dtype) if targets.ndim == 1 else -1.0
    if answers is not None:
        window[-1, place] = answers.to(window.dtype)


class Tally:
    """What is known of some stitches after the first `done` images.

    Args:
        stitches: ids.
        images: how many there are in all.
        confused: the stitch whose answers are kept, if any.

    Attributes:
        targets: classes of the images so far (images,).
        answers: of the confused stitch to them (images,).
        precisions: mean average precision of each stitch in percent, where images have several labels.
    """

    def __init__(self, stitches: Sequence[int], images: int, confused: int | None = None) -> None:
        self.stitches, self.images, self.done, self.confused = list(stitches), images, 0, confused
        self.sums = torch.zeros(len(self.stitches), _SUMS, dtype=torch.float64)
        self.hits = torch.zeros(len(self.stitches), images, dtype=torch.bool)
        self.targets, self.answers = (torch.zeros(images, dtype=torch.int64) for _ in range(2))
        self.precisions: Mapping[int, float | None] = {}

    def window(self, width: int, device: torch.device) -> Tensor:
        """An empty window of the next `width` images: a row per stitch, with sums and then a column per image.

        Two more rows hold the classes and the answers of the confused stitch. Its numbers add up over ranks; adding
        windows rather than ranks makes the sums the same after a resumption.
        """
        return torch.zeros(len(self.stitches) + _ROWS, _SUMS + width, dtype=torch.float64, device=device)

    def add(self, window: Tensor) -> None:
        """Adds a window, summed over all ranks."""
        sums, images = window.cpu().tensor_split([_SUMS], dim=1)
        place = slice(self.done, self.done + images.shape[1])
        self.sums += sums[:-_ROWS]
        self.hits[:, place] = images[:-_ROWS] > 0
        self.targets[place], self.answers[place] = images[-2].long(), images[-1].long()
        self.done += images.shape[1]

    def records(self, records: Sequence[Record]) -> list[Record]:
        """The records of the tallied stitches with all results."""
        found, targets = [], self.targets.numpy()
        known = bool((targets >= 0).all())
        for stitch, sums, hits in zip(self.stitches, self.sums.tolist(), self.hits.numpy(), strict=True):
            top1, top5, loss, n = sums
            record = replace(records[stitch], top1=100 * top1 / n, top5=100 * top5 / n, loss=loss / n, n=int(n))
            per_class, precision = mean_per_class(hits, targets) if known else None, self.precisions.get(stitch)
            found.append(replace(record, mean_per_class=per_class, mean_average_precision=precision))
        return found

    def save(self, path: Path, of: str) -> None:
        """Writes the state, whole or not at all; `of` identifies what it belongs to."""
        _write(path, self._tensors(), {**self._identity(of), 'done': self.done})

    def resume(self, path: Path, of: str) -> None:
        """Loads the state of an interrupted pass over the same stitches and images, if there is one."""
        about, tensors = _read(path)
        if not all(about.get(name, self) == value for name, value in self._identity(of).items()):
            return
        done = about.get('done')
        if _kinds(tensors) != _kinds(self._tensors()) or type(done) is not int or not 0 <= done <= self.images:
            _log.warning('%s is damaged, so its images are evaluated again', path)
            return
        self.sums, self.done = tensors['sums'], done
        self.hits = torch.from_numpy(unpack(tensors['hits'], self.images))
        self.targets, self.answers = tensors['targets'], tensors['answers']

    def _tensors(self) -> dict[str, Tensor]:
        """What a file holds of the state."""
        return {'sums': self.sums, 'hits': pack(self.hits.numpy()), 'targets': self.targets, 'answers': self.answers}

    def _identity(self, of: str) -> dict[str, Any]:
        """What a file must say for its state to be this pass's; earlier versions kept no classes."""
        return {'of': of, 'stitches': self.stitches, 'confused': self.confused}


def write_hits(path: Path, hits: Mapping[int, np.ndarray], of: str, targets: np.ndarray | None = None) -> None:
    """Writes one bit per image and stitch, whole or not at all.

    Args:
        path: of the file.
        hits: of each stitch, whether it is right (images,).
        of: identifies what the hits belong to.
        targets: classes of the images (images,), which `read_targets` finds again.
    """
    ids = sorted(hits)
    tensors = {'stitches': torch.tensor(ids), 'hits': pack(np.stack([hits[stitch] for stitch in ids]))}
    if targets is not None:
        tensors['targets'] = torch.from_numpy(targets)
    _write(path, tensors, {'of': of, 'images': len(hits[ids[0]])})


def read_hits(path: Path, of: str | None = None) -> dict[int, np.ndarray]:
    """Which images each stitch got right, by stitch; empty where the file is missing or belongs to other results.

    Args:
        path: of the file.
        of: what the hits must belong to; anything where None.
    """
    about, tensors = _read(path)
    if not about or (of is not None and about.get('of') != of):
        return {}
    images, kinds = about.get('images'), _kinds(tensors)
    rows = tensors['stitches'].numel() if 'stitches' in tensors else 0
    columns = (images + 7) // 8 if type(images) is int and images > 0 else 0
    wanted = {'stitches': (torch.int64, (rows,)), 'hits': (torch.uint8, (rows, columns))}
    if not columns or any(kinds.get(name) != kind for name, kind in wanted.items()):
        _log.warning('%s is damaged, so it is unknown which images the stitches get right', path)
        return {}
    return dict(zip(tensors['stitches'].tolist(), unpack(tensors['hits'], about['images']), strict=True))


def read_targets(path: Path, of: str | None = None) -> np.ndarray | None:
    """Classes of the images (images,); None where they have several, or the file is older or of other results.

    Args:
        path: of the file.
        of: what the hits must belong to; anything where None.
    """
    about, tensors = _read(path)
    if 'targets' not in tensors or (of is not None and about.get('of') != of):
        return None
    targets = np.asarray(tensors['targets'])
    return targets if (targets >= 0).all() else None


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def pack(hits: np.ndarray) -> Tensor:
    """Bits (rows, columns) as bytes (rows, columns / 8)."""
    return torch.from_numpy(np.packbits(hits, axis=1))


def unpack(packed: Tensor, columns: int) -> np.ndarray:
    """The bits that `pack` was given."""
    return np.unpackbits(packed.numpy(), axis=1, count=columns).astype(bool)


def _write(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes tensors and facts, whole or not at all; one text holds all facts, because safetensors reorders several."""
    metadata = {'about': json.dumps({**about, 'sha256': _digest(about, tensors)})}
    write_atomically(path, lambda temporary: write_tensors(temporary, tensors, metadata))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts and tensors of a file; nothing where it is missing or damaged."""
    try:
        with safe_open(path, 'pt') as file:
            about = parse_json(file.metadata()['about'])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a mapping
        intact = about.pop('sha256') == _digest(about, tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return {}, {}
    return (about, tensors) if intact else ({}, {})


def _digest(about: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of facts and tensors; safetensors notices no flipped bit."""
    digest = hashlib.sha256(json.dumps(about).encode())
    for name in sorted(tensors):
        digest.update(repr((name, tensors[name].dtype, tensors[name].shape)).encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
