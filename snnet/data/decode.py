"""Reading single images of a data set."""

from __future__ import annotations

import logging
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from ..utils.read_rgb import Unreadable, check_regular, to_rgb, why_unreadable

_log = logging.getLogger(__name__)


class Pictures:
    """The decoded images of a data set, as timm decodes them, except that unreadable ones are never skipped.

    Every mode becomes RGB (CMYK, grey of 1 to 16 bits, palette; transparency is dropped), and rotation by EXIF is not
    applied: the anchors were trained without it.

    Args:
        dataset: of timm or torchvision, without a transform.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # a Dataset with a length

    def read(self, index: int) -> tuple[Image.Image, int]:
        """An RGB image and its class.

        Raises:
            Unreadable: the file is missing, damaged, no image, or has more pixels than Pillow's limit.
        """
        reader = getattr(self.dataset, 'reader', None)
        try:
            if reader is None:
                image, target = self.dataset[index]
                return to_rgb(image), target
            samples = getattr(reader, 'samples', None)
            if samples and isinstance(samples[index][0], str):
                check_regular(samples[index][0])
            file, target, *_ = reader[index]
            with file:
                return to_rgb(Image.open(file)), -1 if target is None else target
        except MemoryError:  # says something about the machine, not about the image
            raise
        except Exception as error:  # decoders raise what they like: SyntaxError, struct.error, zlib.error ...
            raise Unreadable(why_unreadable(error)) from None

    def path(self, index: int) -> str:
        """The file of an image, or its number where it has none."""
        if hasattr(self.dataset, 'filename'):
            return str(self.dataset.filename(index, absolute=True))
        samples = getattr(self.dataset, 'samples', None)
        return str(samples[index][0]) if samples else f'image {index}'

    def warn(self, index: int, reason: str) -> None:
        """Raises the error of an image that cannot be read."""
        _log.warning('%r cannot be read (%s): another image takes its place', self.path(index), reason)
