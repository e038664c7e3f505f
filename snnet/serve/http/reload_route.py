"""POST /v1/reload: swaps a net for what its folder holds now."""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING

from ...errors import SnnetError
from ..service.refusal import Refusal
from .replies import json_reply
from .shared_state import Context

if TYPE_CHECKING:
    from fastapi import Request, Response


async def reload(context: Context, request: Request) -> Response:
    """Reloads the net that the option `model` names, or the first one.

    Raises:
        Refusal: reloading is off, the token is wrong, there is no such net, or the new one is refused.
    """
    if context.reload_token is None:
        raise Refusal('unknown', 'reloading is off: start with --reload-token-file FILE, or send SIGHUP')
    given = request.headers.get('x-reload-token', '')
    if not hmac.compare_digest(given.encode(), context.reload_token.encode()):
        raise Refusal('forbidden', 'this needs the token: send it as X-Reload-Token: TOKEN')
    name = context.service.net(request.query_params.get('model')).name
    try:
        fresh = await asyncio.to_thread(context.service.reload, name)
    except SnnetError as error:
        raise Refusal('invalid', f'the old net goes on, because the new one is refused: {error}') from None
    return json_reply({'model': fresh.name, 'version': fresh.version, 'weights': fresh.net.fingerprint})
