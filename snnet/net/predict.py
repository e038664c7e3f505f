"""Classes of images: from files, pixels or tensors to names and probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from ..errors import SnnetError, reason_of
from ..utils.eval_mode import eval_mode
from ..utils.read_rgb import Unreadable, read_rgb, to_rgb, why_unreadable
from ..utils.whole_number import whole_number
from .joined_anchors import JoinedAnchors
from .preprocessing import preprocessing

Picture = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor
"""An image: a file, an image of Pillow, pixels (height, width, 3) or (height, width) of type uint8, or a tensor
(channels, height, width) that is normalized already."""
_PIXELS = 'pixels are an array of type uint8 and shape (height, width, 3) or (height, width)'


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, the most probable first.

    Attributes:
        labels: names of the classes, or their numbers as texts where the net has no names.
        probabilities: of these classes, from 0 to 1. Where images have several labels (`net.several_labels`), each is
            that of a yes to this class by itself, so they do not add up to 1.
        indices: numbers of these classes.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    indices: tuple[int, ...]

    def __str__(self) -> str:
        pairs = zip(self.labels, self.probabilities, strict=True)
        return ', '.join(f'{label} {probability:.1%}' for label, probability in pairs)


class ImagePreparer:
    """Turns images of any kind into what a net runs on: resized, cropped and normalized as it expects.

    Args:
        net: gives size, cropping and normalization.
    """

    def __init__(self, net: JoinedAnchors) -> None:
        self.size = net.input_size
        self._transform: Any = create_transform(is_training=False, **preprocessing(net))

    def __call__(self, picture: Picture) -> Tensor:
        """The image as a tensor (channels, height, width).

        Raises:
            Unreadable: a file that is missing, damaged or not an image.
            SnnetError: an array or tensor of another type or shape.
        """
        if isinstance(picture, Tensor) and picture.is_floating_point():
            if picture.ndim != 3 or picture.shape[0] != self.size[0]:
                raise SnnetError(
                    f'a normalized image is a tensor ({self.size[0]}, height, width), not {tuple(picture.shape)}'
                )
            if not bool(picture.isfinite().all()):
                raise SnnetError('an image holds values that are not finite')
            return picture
        if self.size[0] not in (1, 3):
            raise SnnetError(f'images of {self.size[0]} channels are given as normalized tensors')
        image = self._image(picture)
        if 0 in image.size:
            raise Unreadable(f'it has {image.width} x {image.height} pixels')
        prepared: Tensor = self._transform(image if self.size[0] == 3 else image.convert('L'))
        return prepared

    def _image(self, picture: Picture) -> Image.Image:
        if isinstance(picture, str | Path):
            return read_rgb(picture)
        if isinstance(picture, Image.Image):
            try:
                return to_rgb(picture)
            except Exception as error:  # of a decoder: the pixels are read only now
                raise Unreadable(why_unreadable(error)) from None
        if not isinstance(picture, np.ndarray | Tensor):
            raise SnnetError(f'an image is a file, a PIL image, an array or a tensor, not {type(picture).__name__}')
        pixels = np.asarray(picture.cpu() if isinstance(picture, Tensor) else picture)
        if isinstance(picture, Tensor) and pixels.ndim == 3:  # torch puts channels first
            pixels = pixels.transpose(1, 2, 0)
        if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3))):
            given = f'{tuple(picture.shape)} of type {picture.dtype}'
            raise SnnetError(f'{_PIXELS} (channels first in a tensor), not {given}')
        return Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels).convert('RGB')


def as_pictures(images: Picture | Iterable[Picture]) -> Iterable[Picture]:
    """The images one by one, where one alone, a list of them or a batch (N, ...) may be given."""
    if isinstance(images, str | Path | Image.Image):
        return [images]
    if isinstance(images, Tensor):
        return images if images.ndim == 4 else [images]
    if isinstance(images, np.ndarray):
        return images if images.ndim == 4 else [images]
    if not isinstance(images, Iterable):
        raise SnnetError(f'images are files, PIL images, arrays or tensors, or a list of them, not {images!r}')
    return images


def predict(
    net: JoinedAnchors, images: Picture | Iterable[Picture], stitch: int | None, topk: int, batch_size: int
) -> list[Prediction]:
    """The classes of images (see `StitchableNet.predict`)."""
    refuse_without_classes(net)
    topk, batch_size = whole_number('topk', topk, 1), whole_number('batch_size', batch_size, 1)
    found: list[Prediction] = []
    for batch in batched(prepare_pictures(net, images), batch_size):
        found += classify(net, batch, stitch, topk)
    return found


def prepare_pictures(net: JoinedAnchors, images: Picture | Iterable[Picture]) -> Iterator[Tensor]:
    """Images of any kind as tensors (channels, height, width), one by one.

    Raises:
        SnnetError: one that cannot be read, which is named, or of another type or shape.
    """
    prepare = ImagePreparer(net)
    for number, picture in enumerate(as_pictures(images)):
        try:
            yield prepare(picture)
        except Unreadable as error:
            name = repr(str(picture)) if isinstance(picture, str | Path) else f'image {number}'
            raise SnnetError(f'{name} cannot be read: {error}') from None


def classify(net: JoinedAnchors, batch: Sequence[Tensor], stitch: int | None, topk: int) -> list[Prediction]:
    """The classes of one batch of prepared images."""
    shapes = {tuple(image.shape) for image in batch}
    if len(shapes) > 1:
        raise SnnetError(f'tensors of one batch have one size, not {" and ".join(map(str, sorted(shapes)))}')
    like = next(net.parameters())
    with torch.inference_mode(), eval_mode(net):
        logits = _logits(net, torch.stack(list(batch)).to(like.device, like.dtype), stitch)  # (N, classes)
        values, indices = _most_likely(logits.float(), min(topk, net.num_classes), net.several_labels)
    names = net.class_names
    return [
        Prediction(tuple(names[i] if names else str(i) for i in row), tuple(chances), tuple(row))
        for row, chances in zip(indices.tolist(), values.tolist(), strict=True)
    ]


def _most_likely(logits: Tensor, count: int, several_labels: bool) -> tuple[Tensor, Tensor]:
    """Probabilities and numbers of so many classes per image (N, count), the most likely first."""
    if not several_labels:
        values, indices = logits.softmax(1).topk(count)
        return values, indices
    highest, indices = logits.topk(count)  # sorted before the sigmoid, which rounds large logits to one value
    return highest.sigmoid(), indices


def _logits(net: JoinedAnchors, images: Tensor, stitch: int | None) -> Tensor:
    try:
        logits: Tensor = net(images, stitch=stitch)
    except (AssertionError, RuntimeError, ValueError) as error:
        size = tuple(images.shape[1:])
        if size == net.input_size or isinstance(error, SnnetError):
            raise
        reason = reason_of(error)
        raise SnnetError(f'the net is made for images {net.input_size}, and does not run on {size}: {reason}') from None
    return logits


def refuse_without_classes(net: JoinedAnchors) -> None:
    """Refuses a net of embeddings.

    Raises:
        SnnetError: the net has no classes.
    """
    if net.num_classes < 1:
        raise SnnetError(f'{net.title} has no classes: it is a net of embeddings, which net.embed(images) gives')


def batched(items: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
