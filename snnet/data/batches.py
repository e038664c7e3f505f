"""From draws to batches: decoded and augmented by key in loader processes, normalized where they are used."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from ..utils.read_rgb import Unreadable
from ..utils.seeds import seed_cpu, seeded_libraries
from .decode import Pictures
from .order import Draw
from .replacements import replacements


class Box(NamedTuple):
    """An erased rectangle of an image of a batch, and the rows and columns of its filling (1 where it is uniform)."""

    image: int
    top: int
    left: int
    height: int
    width: int
    rows: int
    columns: int


class Batch(NamedTuple):
    """What a loader process sends to the training process.

    Attributes:
        images: (N, 3, H, W), uint8.
        targets: classes (N,).
        boxes: what random erasing fills after normalization.
        fillings: their values one after the other, float32.
        bad: images that cannot be read, with reasons, in the order of draws.
        lost: whether one of them has no replacement.
    """

    images: Tensor
    targets: Tensor
    boxes: list[Box]
    fillings: Tensor
    bad: list[tuple[int, str]]
    lost: bool


class AugmentedPictures(Dataset[Any]):
    """Transformed images by draw, each with the libraries seeded by the draw's key.

    The last decoded image is kept: repeated augmentation draws the same one several times in a row.

    Args:
        pictures: the decoded images.
        transform: from a PIL image to a uint8 tensor (3, H, W).
        erasing: timm's random erasing, or None.
        replace: whether an image that cannot be read is replaced by another, chosen by the draw's key.
    """

    def __init__(self, pictures: Pictures, transform: Any, erasing: Any = None, replace: bool = True) -> None:
        self.pictures, self.transform, self.erasing = pictures, transform, erasing
        self.replace = replace
        self._kept: tuple[int, Image.Image, int] | None = None

    def __getitem__(self, draw: Draw) -> Any:
        bad: list[tuple[int, str]] = []
        for index in chain([draw.image], replacements(draw.key, len(self.pictures)) if self.replace else ()):
            try:
                image, target = self._read(index)
            except Unreadable as error:
                bad.append((index, str(error)))
                continue
            with _seeded(draw.key):
                pixels = self.transform(image).contiguous()
                canvas = _Canvas(pixels.shape)
                if self.erasing is not None:
                    self.erasing(canvas)
            return pixels, target, canvas.patches, bad
        return None, -1, [], bad

    def _read(self, index: int) -> tuple[Image.Image, int]:
        if self._kept is None or self._kept[0] != index:
            self._kept = (index, *self.pictures.read(index))
        return self._kept[1:]


class Normalizer:
    """Puts a batch on a device as float32 images, bit for bit as torchvision's ToTensor, Normalize and erasing do.

    Args:
        mean: of each channel, of values from 0 to 1.
        std: of each channel.
        device: where the images are wanted.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.device = device
        self._mean, self._std = (torch.tensor(x, device=device).view(-1, 1, 1) for x in (mean, std))
        self._levels = torch.tensor(255.0, device=device)  # a plain number would be multiplied by its inverse on a GPU

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) and classes (N,)."""
        images = batch.images.to(self.device, non_blocking=True).to(torch.float32)
        images.div_(self._levels).sub_(self._mean).div_(self._std)
        fillings, at = batch.fillings.to(self.device, non_blocking=True), 0
        for box in batch.boxes:
            size = images.shape[1] * box.rows * box.columns
            filling = fillings[at : at + size].view(-1, box.rows, box.columns)
            images[box.image, :, box.top : box.top + box.height, box.left : box.left + box.width] = filling
            at += size
        return images, batch.targets.to(self.device, non_blocking=True)


class _Canvas:
    """Stands in for a normalized image: notes what random erasing would write into it."""

    dtype = torch.float32

    def __init__(self, shape: torch.Size) -> None:
        self._shape = shape
        self.patches: list[tuple[int, int, int, int, Tensor]] = []

    def size(self) -> torch.Size:
        return self._shape

    def __setitem__(self, place: tuple[slice, slice, slice], patch: Tensor) -> None:
        _, rows, columns = place
        self.patches.append(
            (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start, patch),
        )


def _seeded(value: int) -> AbstractContextManager[None]:
    """Seeds the libraries, for a `with` block; a loader process draws nothing else, so nothing is restored there."""
    if get_worker_info() is None:
        return seeded_libraries(value)
    seed_cpu(value)
    return nullcontext()


def collate(items: list[Any]) -> Batch:
    """A batch of what `AugmentedPictures` gives."""
    kept = [item for item in items if item[0] is not None]
    boxes, fillings = [], [torch.empty(0)]
    for i, (_, _, patches, _) in enumerate(kept):
        for top, left, height, width, patch in patches:
            boxes.append(Box(i, top, left, height, width, *patch.shape[1:]))
            fillings.append(patch.flatten())
    return Batch(
        images=default_collate([item[0] for item in kept]) if kept else torch.empty(0),
        targets=torch.tensor([item[1] for item in kept]),
        boxes=boxes,
        fillings=torch.cat(fillings),
        bad=[bad for item in items for bad in item[3]],
        lost=len(kept) < len(items),
    )
