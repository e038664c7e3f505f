"""The parts of a multipart form, kept in memory."""

from __future__ import annotations

from typing import Any, NamedTuple

from ...errors import reason_of
from ..service.refusal import Refusal

_MAX_HEADER = 8_000
"""Most bytes of the headers of a part."""


class FormPart(NamedTuple):
    """A part of a form.

    Attributes:
        name: name of its field.
        is_file: whether it is a file.
        content_type: type of its content; '' where none is given.
        data: the content.
    """

    name: str
    is_file: bool
    content_type: str
    data: bytes


def parse_multipart(body: bytes, boundary: bytes, most: int) -> list[FormPart]:
    """The parts of a form.

    Args:
        body: the form.
        boundary: what parts it.
        most: most parts.

    Raises:
        Refusal: the form is malformed, is not complete, or has too many parts.
    """
    from python_multipart.exceptions import MultipartParseError
    from python_multipart.multipart import MultipartParser

    collector = _Collector(most)
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(body)
        parser.finalize()
    except (MultipartParseError, UnicodeDecodeError, ValueError) as error:
        raise Refusal('invalid', f'the form is malformed: {reason_of(error)[:200]}') from None
    if not collector.complete:
        raise Refusal('invalid', 'the form is not complete')
    return collector.parts


class _Collector:
    """Collects what the parser calls out."""

    def __init__(self, most: int) -> None:
        self.most, self.parts, self.complete = most, list[FormPart](), False
        self._headers: dict[bytes, bytes] = {}
        self._key, self._value, self._data = b'', b'', bytearray()

    def callbacks(self) -> Any:
        """What the parser calls."""
        names = ('part_begin', 'part_data', 'part_end', 'header_field', 'header_value', 'header_end', 'end')
        return {f'on_{name}': getattr(self, f'_{name}') for name in names}

    def _part_begin(self) -> None:
        if len(self.parts) >= self.most:
            raise Refusal('too_large', f'a form has at most {self.most} parts')
        self._headers, self._data = {}, bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._key = self._within(self._key + data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value = self._within(self._value + data[start:end])

    def _header_end(self) -> None:
        self._headers[self._key.lower()] = self._value
        self._key = self._value = b''

    def _part_end(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self._headers.get(b'content-disposition', b''))
        name = options.get(b'name', b'').decode('utf-8', 'replace')
        kind = self._headers.get(b'content-type', b'').decode('latin-1')
        self.parts.append(FormPart(name, b'filename' in options, kind, bytes(self._data)))

    def _end(self) -> None:
        self.complete = True

    @staticmethod
    def _within(text: bytes) -> bytes:
        if len(text) > _MAX_HEADER:
            raise ValueError('a header of a part is too long')
        return text
