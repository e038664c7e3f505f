"""The body of a request, read within limits of size and time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..service.refusal import Refusal
from .http_limits import HttpLimits

if TYPE_CHECKING:
    from fastapi import Request


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
        return await asyncio.wait_for(_collect(request, limits), limits.body_seconds)
    except asyncio.TimeoutError:
        raise Refusal('invalid', f'the body was not there after {limits.body_seconds:g} s', closes=True) from None


async def _collect(request: Request, limits: HttpLimits) -> bytes:
    from starlette.requests import ClientDisconnect

    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limits.max_body:
                raise _too_large(limits)
            parts.append(part)
    except ClientDisconnect:
        raise Refusal('gone', 'the client went away before its request was complete') from None
    return b''.join(parts)


def _too_large(limits: HttpLimits) -> Refusal:
    return Refusal('too_large', f'a body has at most {limits.max_body_mb:g} MB', closes=True)
