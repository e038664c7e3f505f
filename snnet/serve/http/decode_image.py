"""Encoded images and arrays from strangers, decoded with limits."""

from __future__ import annotations

import io
import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ...errors import reason_of
from ...utils.read_rgb import to_rgb
from ..service.refusal import Refusal
from ..service.served_net import ServedNet
from .http_limits import HttpLimits

FORMATS = ('JPEG', 'PNG', 'WEBP')
_COMMON_HEADER = 128
"""Bytes of the header that numpy writes in front of nearly every array; such headers are parsed once."""
_MAX_HEADER = 10_000
"""Most bytes of the header of an array."""


def decode_image(data: bytes, served: ServedNet, limits: HttpLimits) -> Tensor:
    """An encoded image as (C, H, W), prepared for the net as for its evaluation.

    Raises:
        Refusal: it is not a JPEG, PNG or WebP image, is damaged or too large.
    """
    if not data:
        raise Refusal('invalid', 'the image has 0 bytes')
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > limits.max_pixels:
            raise Refusal('too_large', f'an image has at most {limits.max_pixels:,} pixels, not {width} x {height}')
        prepared = served.transform(to_rgb(image))
    except Refusal:
        raise
    except UnidentifiedImageError:
        raise Refusal('unsupported', 'images are JPEG, PNG or WebP, and these bytes are none of them') from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Refusal('too_large', f'an image has at most {limits.max_pixels:,} pixels') from None
    except Exception as error:  # decoders raise what they like: SyntaxError, struct.error, zlib.error ...
        raise Refusal('invalid', f'the image cannot be decoded: {reason_of(error)[:200]}') from None
    assert isinstance(prepared, Tensor)
    return prepared


def read_npy(data: bytes, served: ServedNet, limits: HttpLimits) -> list[Tensor]:
    """The prepared images in a file of numpy's format: (C, H, W) or (N, C, H, W) of floats.

    Raises:
        Refusal: it is no such file, or has another shape or type.
    """
    try:
        shape, fortran, dtype, start = _header_of(data[:_COMMON_HEADER])
    except Exception:  # a longer header, or none
        shape, fortran, dtype, start = _read_header(data)
    if dtype.hasobject or dtype.kind != 'f':
        raise Refusal('invalid', f'an array holds floating-point numbers, not {str(dtype)[:40]}')
    values = memoryview(data)[start:]
    if math.prod(shape) * dtype.itemsize != len(values):
        raise Refusal('invalid', f'an array of shape {shape} needs {math.prod(shape) * dtype.itemsize} bytes, '
                                 f'not {len(values)}')  # fmt: skip
    return check_images(np.frombuffer(values, dtype).reshape(shape, order='F' if fortran else 'C'), served, limits)


@lru_cache(maxsize=64)
def _header_of(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether the order is Fortran's, type, and length of the header in front of an array."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = read(file, max_header_size=_MAX_HEADER)
    return shape, fortran, dtype, file.tell()


def _read_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    try:
        return _header_of.__wrapped__(data)
    except Exception as error:  # numpy parses the header with Python's own parser, which raises many kinds
        raise Refusal('invalid', f'the body is not a file of numpy.save: {reason_of(error)[:200]}') from None


def check_images(array: np.ndarray[Any, Any], served: ServedNet, limits: HttpLimits) -> list[Tensor]:
    """Prepared images as tensors, after a check of shape and values.

    Args:
        array: (C, H, W) or (N, C, H, W).
        served: the net.
        limits: most images.

    Raises:
        Refusal: another shape, too many images, or values that are not finite.
    """
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[1:] != served.input_size or not len(array):
        size = ', '.join(map(str, served.input_size))
        raise Refusal('invalid', f'images have the shape ({size}) or (N, {size}), not {array.shape}')
    check_count(len(array), limits)
    with np.errstate(over='ignore'):
        images = array.astype(np.float32)
    if not np.isfinite(images).all():
        raise Refusal('invalid', 'images hold finite numbers only')
    return [torch.from_numpy(image) for image in images]


def check_count(count: int, limits: HttpLimits) -> None:
    """Refuses too many images.

    Raises:
        Refusal: more than may be in a request.
    """
    if count > limits.max_images:
        raise Refusal('too_large', f'a request has at most {limits.max_images} images, this one has {count}')
