"""Image files as RGB pixels, or the reason why they cannot be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import reason_of


class Unreadable(Exception):
    """An image that cannot be decoded; the message is the reason, the same on every machine and in every process."""


def read_rgb(file: str | Path | IO[bytes]) -> Image.Image:
    """The image in a file, decoded to RGB (see `to_rgb`).

    Raises:
        Unreadable: the file is missing, damaged, not an image, or has more pixels than Pillow's limit.
    """
    try:
        if isinstance(file, str | Path):
            check_regular(file)
        with Image.open(file) as image:
            return to_rgb(image)
    except MemoryError:  # says something about the machine, not about the image
        raise
    except Exception as error:  # decoders raise what they like: SyntaxError, struct.error, zlib.error ...
        raise Unreadable(why_unreadable(error)) from None


def check_regular(path: str | Path) -> None:
    """Refuses what might never end; a missing file shows when it is opened.

    Raises:
        OSError: it is a folder, a pipe or a device.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError('not a regular file')


def to_rgb(image: Image.Image) -> Image.Image:
    """Decodes an image to RGB: CMYK, gray of 1 to 16 bits, palette; transparency is dropped, EXIF is not applied."""
    if image.mode == 'RGB':
        image.load()
        return image
    if image.mode.startswith('I;16'):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # convert would cut all but the darkest off
    if image.mode in ('I', 'F'):
        raise ValueError(f"pixels of mode '{image.mode}' have no known range")
    if image.mode == 'P' and 'transparency' in image.info:
        image = image.convert('RGBA')  # the same colors; Pillow warns of each image that skips this step
    return image.convert('RGB')


def why_unreadable(error: Exception) -> str:
    """The reason in an error of Pillow or one of its decoders, as a clause."""
    if isinstance(error, UnidentifiedImageError):
        return 'no image in a format that Pillow knows'
    if isinstance(error, Image.DecompressionBombError):
        return f'more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels'
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return reason_of(error)
