"""A folder of teacher answers in shards, which are written whole, checked when read, and asked for again if damaged."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from ..errors import SnnetError, reason_of
from ..utils.files import write_atomically, write_text
from ..utils.typed_json import read_json
from .answer import Answer

_log = logging.getLogger(__name__)

MANIFEST = 'manifest.json'
FORMAT = 1
"""Version of the layout of a store; raised when older readers would misread it."""
SHARD_STEPS, SHARD_BYTES = 1024, 2**23
"""A shard is full at either: it is what memory holds at most, and what a damaged file costs."""
_NAME = re.compile(r'(\d+)-(\d+)\.([0-9a-f]{64})\.safetensors')


@dataclass(frozen=True)
class _Shard:
    """A file with the answers of the steps from `first` to before `stop`, named by them and by its SHA-256."""

    path: Path
    first: int
    stop: int
    digest: str


class Store:
    """The answers of one rank, by step, in a folder that the ranks share.

    Each rank has its own folder, because its batches and their mixup depend on its number, on the number of ranks and
    on the batch size; a store serves runs that agree in all three. A shard is written whole, under a name that holds
    its steps and its SHA-256: after a crash at any moment, what was flushed is valid, and the teacher is asked again
    for the rest. Any number of runs may read a store at the same time, but only one may fill it.

    Args:
        folder: of the store; made when first written to.
        fingerprint: what decides images and answers (see `teacher_answers.fingerprint`), in values that JSON can hold;
            None is unknown and agrees with anything.
        rank: of this process.

    Raises:
        SnnetError: the folder holds a store with another fingerprint, or something else.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], rank: int = 0) -> None:
        self.folder, self.fingerprint = folder, json.loads(json.dumps(fingerprint))
        self._own = folder / f'rank{rank}'
        if folder.exists() and not folder.is_dir():
            raise SnnetError(f"the teacher's store '{folder}' is not a folder: name another --teacher-store")
        for manifest in sorted(folder.glob(f'rank*/{MANIFEST}')):
            self._compare(manifest)
        for left in self._own.glob('.*.tmp'):  # by a crash
            with suppress(OSError):
                left.unlink()
        self._buffer: dict[int, tuple[Answer, Tensor]] = {}
        self._fresh = False
        self._shards = _tidied(_listed(self._own))
        self._open: tuple[_Shard | None, dict[str, np.ndarray]] = (None, {})
        if self._shards and not (self._own / MANIFEST).is_file():
            raise SnnetError(f'{self._own} has lost its {MANIFEST}, which says what its answers belong to: remove it')

    def held(self, steps: range) -> int:
        """How many of the steps have a shard."""
        total, done = 0, steps.start
        for shard in self._shards:  # sorted by both ends
            total += max(0, min(shard.stop, steps.stop) - max(shard.first, done))
            done = max(done, shard.stop)
        return total

    def get(self, step: int, images: Tensor) -> Answer | None:
        """The answer of a step, on the device of its images, or None where there is none.

        Raises:
            SnnetError: the shard belongs to other images (a few pixels of its first step are compared).
        """
        if step in self._buffer:
            return self._buffer[step][0]
        place = bisect_right(self._shards, step, key=lambda shard: shard.first) - 1
        if place < 0 or step >= self._shards[place].stop:
            return None
        shard = self._shards[place]
        arrays = self._read(shard)
        if arrays is None:
            return None
        if step == shard.first and not _alike(arrays['probe'], _probe(images)):
            raise SnnetError(
                f'the answers in {self.folder} do not belong to the images of step {step}: the files, or the '
                f'libraries that read and augment them, have changed since; name another --teacher-store'
            )
        return _unpacked(arrays, step - shard.first, images.device)

    def put(self, step: int, answer: Answer, images: Tensor) -> None:
        """Keeps the answer of a step; written when a shard is full, or by `flush`."""
        self._buffer[step] = answer, _probe(images)
        self._fresh = True
        size = sum(t.numel() * t.element_size() for t in (answer.classes, answer.shares) if t is not None)
        if len(self._buffer) >= min(SHARD_STEPS, max(1, SHARD_BYTES // size)):
            self.flush()
            self._buffer.clear()

    def flush(self) -> None:
        """Writes what is new; a shard that is not full yet is written again with more steps.

        If that fails, there is a warning and training continues: the teacher is asked again next time.
        """
        if not self._fresh:
            return
        try:
            written = [self._write(run) for run in _runs(self._buffer)]
        except OSError as error:
            _log.warning("the teacher's answers cannot be stored in %s: %s", self._own, reason_of(error))
            return
        self._shards = _tidied([*written, *self._shards])
        self._fresh = False

    def _write(self, steps: list[int]) -> _Shard:
        answers = [self._buffer[step][0] for step in steps]
        arrays = {'probe': self._buffer[steps[0]][1].cpu().numpy()}
        for name in ('classes', 'shares'):
            tensors = [getattr(answer, name) for answer in answers]
            if tensors[0] is not None:
                arrays[name] = torch.stack(tensors).cpu().numpy()
        if 'classes' in arrays:  # in as few bytes as the largest needs
            arrays['classes'] = arrays['classes'].astype(np.min_scalar_type(int(arrays['classes'].max())))
        data = save(arrays)
        first, stop, digest = steps[0], steps[-1] + 1, hashlib.sha256(data).hexdigest()
        path = self._own / f'{first:09d}-{stop:09d}.{digest}.safetensors'
        if not (self._own / MANIFEST).is_file():
            self._own.mkdir(parents=True, exist_ok=True)
            head = {'format': FORMAT, 'library': 'snnet', 'fingerprint': self.fingerprint}
            write_text(self._own / MANIFEST, json.dumps(head, indent=1))
        write_atomically(path, lambda temporary: temporary.write_bytes(data))
        return _Shard(path, first, stop, digest)

    def _read(self, shard: _Shard) -> dict[str, np.ndarray] | None:
        """The arrays of a shard, one at a time in memory; a damaged one is given up."""
        if self._open[0] == shard:
            return self._open[1]
        try:
            data = shard.path.read_bytes()
        except OSError as error:
            reason = f'cannot be read ({reason_of(error)})'
        else:
            if hashlib.sha256(data).hexdigest() == shard.digest:
                self._open = shard, load(data)
                return self._open[1]
            reason = 'is damaged (another SHA-256 than in its name)'
        _log.warning('%s %s: the teacher is asked again for its %d steps', shard.path, reason, shard.stop - shard.first)
        self._shards.remove(shard)
        with suppress(OSError):
            shard.path.unlink()
        return None

    def _compare(self, manifest: Path) -> None:
        """Refuses a store made with other settings."""
        try:
            head = read_json(manifest)
            known, before = head['format'], head['fingerprint'].copy()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SnnetError(
                f'{manifest} is damaged ({reason_of(error)}): remove the folder, or name another --teacher-store'
            ) from None
        if known != FORMAT:
            raise SnnetError(f'{manifest} has format {known}, this snnet reads {FORMAT}: name another --teacher-store')
        now = self.fingerprint
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key) and now.get(key, '') is not None]
        if keys:
            listed = ', '.join(f'{key} was {before.get(key)!r}, is {now.get(key)!r}' for key in keys)
            raise SnnetError(
                f"the answers in '{self.folder}' were made with different settings: {listed}; "
                f'name another --teacher-store'
            )


def _listed(folder: Path) -> list[_Shard]:
    found = [(path, _NAME.fullmatch(path.name)) for path in sorted(folder.glob('*.safetensors'))]
    return [_Shard(path, int(m[1]), int(m[2]), m[3]) for path, m in found if m is not None]


def _tidied(shards: list[_Shard]) -> list[_Shard]:
    """Shards sorted by both ends; those whose steps another one holds are removed from disk."""
    kept: list[_Shard] = []
    for shard in sorted(shards, key=lambda shard: (shard.first, -shard.stop)):
        if not kept or shard.stop > kept[-1].stop:
            kept.append(shard)
        elif shard.path != kept[-1].path:
            with suppress(OSError):
                shard.path.unlink()
    return kept


def _runs(steps: Iterable[int]) -> list[list[int]]:
    """Steps in order, cut where one is missing."""
    runs: list[list[int]] = []
    for step in sorted(steps):
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return runs


def _unpacked(arrays: dict[str, np.ndarray], place: int, device: torch.device) -> Answer:
    classes = torch.from_numpy(arrays['classes'][place].astype(np.int64)) if 'classes' in arrays else None
    shares = torch.from_numpy(arrays['shares'][place]) if 'shares' in arrays else None
    return Answer(*[None if t is None else t.to(device, non_blocking=True) for t in (classes, shares)])


def _probe(images: Tensor) -> Tensor:
    """The pixel in the middle of each image (N, C), copied: a view would keep all the others in memory."""
    return images[:, :, images.shape[2] // 2, images.shape[3] // 2].to(torch.float32, copy=True)


def _alike(stored: np.ndarray, probe: Tensor) -> bool:
    """Whether two probes are of the same images, even if they were normalized or mixed on another device."""
    return stored.shape == tuple(probe.shape) and np.allclose(stored, probe.cpu().numpy(), atol=0.01)
