"""The images in the body of a request, by its content type."""

from __future__ import annotations

from email.message import Message

from torch import Tensor

from ..service.refusal import Refusal
from ..service.served_net import ServedNet
from .decode_image import check_count, decode_image, read_npy
from .http_limits import HttpLimits
from .parse_multipart import FormPart, parse_multipart
from .request_options import NAMES

NPY = 'application/x-npy'
IMAGES = ('image/jpeg', 'image/png', 'image/webp', 'application/octet-stream')


def split_form(body: bytes, content_type: str, limits: HttpLimits) -> tuple[list[tuple[str, str]], list[FormPart]]:
    """The options of a body and its files: a form may have both, anything else is one file.

    Raises:
        Refusal: a malformed form, or a type that is neither an image, an array nor a form.
    """
    kind, boundary = _parse_type(content_type)
    if kind != 'multipart/form-data':
        if kind not in (NPY, *IMAGES):
            given = kind[:60] or 'no content type'
            raise Refusal('unsupported', f'a body is {", ".join((*IMAGES, NPY))} or multipart/form-data, not {given}')
        return [], [FormPart('image', True, kind, body)]
    if not boundary:
        raise Refusal('invalid', 'the content type of a form names its boundary')
    parts = parse_multipart(body, boundary.encode('latin-1', 'replace'), limits.max_images + len(NAMES))
    files = [part for part in parts if part.is_file]
    check_count(len(files), limits)
    return [(part.name, part.data.decode('utf-8', 'replace')) for part in parts if not part.is_file], files


def read_images(files: list[FormPart], served: ServedNet, limits: HttpLimits) -> list[Tensor]:
    """The prepared images in files, each an encoded image or an array of images.

    Raises:
        Refusal: there is none, there are too many, or one cannot be decoded.
    """
    if not files:
        raise Refusal('invalid', 'the form holds no file')
    images: list[Tensor] = []
    for file in files:
        is_array = _parse_type(file.content_type)[0] == NPY or file.data.startswith(b'\x93NUMPY')
        images += read_npy(file.data, served, limits) if is_array else [decode_image(file.data, served, limits)]
    check_count(len(images), limits)
    return images


def _parse_type(content_type: str) -> tuple[str, str]:
    """Returns a content type in lower case, and its boundary."""
    message = Message()
    message['content-type'] = content_type
    kind = content_type.partition(';')[0].strip().lower()
    boundary = message.get_param('boundary', '')
    return kind, boundary if isinstance(boundary, str) else ''
