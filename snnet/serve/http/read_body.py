"""The body of a request, read within limits of size and time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..service.refusal import Refusal
from .http_limits import HttpLimits
from .time_limit import TimeLimit

if TYPE_CHECKING:
    from starlette.requests import Request


async def read_body(request: Request, limits: HttpLimits) -> bytes:
    """The whole body.

    Raises:
        Refusal: it is too large, too slow or compressed, or the client went away.
    """
    encoding = request.headers.get('content-encoding', 'identity')
    if encoding != 'identity':
        raise Refusal('unsupported', f"bodies are sent as they are, not with Content-Encoding '{encoding[:40]}'")
    length = request.headers.get('content-length')
    if length is not None and length.isdecimal() and int(length[:20]) > limits.max_body:
        raise _too_large(limits)
    try:
        with TimeLimit(limits.body_seconds):
            return await _collect(request, limits)
    except TimeoutError:
        raise Refusal('invalid', f'the body was not there after {limits.body_seconds:g} s', closes=True) from None


async def _collect(request: Request, limits: HttpLimits) -> bytes:
    parts, size, more = list[bytes](), 0, True
    while more:
        message = await request.receive()
        if message['type'] == 'http.disconnect':
            raise Refusal('gone', 'the client went away before its request was complete')
        part, more = message.get('body', b''), message.get('more_body', False)
        size += len(part)
        if size > limits.max_body:
            raise _too_large(limits)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b''.join(parts)


def _too_large(limits: HttpLimits) -> Refusal:
    return Refusal('too_large', f'a body has at most {limits.max_body_mb:g} MB', closes=True)
