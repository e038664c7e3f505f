"""What every request passes: key, access log, and a last catch of errors."""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..service.refusal import Refusal
from .replies import json_reply, refusal_reply

_log = logging.getLogger(__name__)
_access = logging.getLogger('snnet.access')
OPEN = ('/', '/healthz', '/readyz', '/v2/health/live', '/v2/health/ready', '/favicon.ico')
"""Paths that need no key, besides those of the page's files."""
Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
_HEADERS = [
    (b'x-content-type-options', b'nosniff'),
    (b'content-security-policy', b"default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"),
    (b'referrer-policy', b'no-referrer'),
]


class Gate:
    """An ASGI application around another one.

    Args:
        app: the other one.
        key: what clients have to know; None lets everybody in.
        log_access: write a line of JSON for every request to the access log.
    """

    def __init__(self, app: Application, key: str | None = None, log_access: bool = False) -> None:
        self._app, self._key, self._log_access = app, key, log_access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 0
        scope.setdefault('state', {})

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message['type'] == 'http.response.start':
                status = message['status']
                message['headers'] = [*message.get('headers', ()), *_HEADERS]
            await send(message)

        try:
            if self._may_enter(scope):
                await self._app(scope, receive, noting)
            else:
                refusal = Refusal('forbidden', 'this needs a key: send it as Authorization: Bearer KEY')
                await refusal_reply(refusal, scope['path'].startswith('/v2'))(scope, receive, noting)
        except Exception:
            _log.exception('%s %s failed', scope['method'], scope['path'])
            if not status:
                error = {'error': {'code': 'failed', 'message': 'the service failed; its log says why'}}
                await json_reply(error, 500)(scope, receive, noting)
        finally:
            if self._log_access:
                self._note(scope, status, time.perf_counter() - begin)

    def _may_enter(self, scope: Scope) -> bool:
        if self._key is None or scope['path'] in OPEN or scope['path'].startswith('/assets/'):
            return True
        headers = dict(scope['headers'])
        given = headers.get(b'x-api-key', b'')
        kind, _, token = headers.get(b'authorization', b'').partition(b' ')
        given = token.strip() if kind.lower() == b'bearer' else given
        return hmac.compare_digest(given, self._key.encode())

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        client = scope.get('client') or ('', 0)
        line = {
            'time': time.strftime('%Y-%m-%dT%H:%M:%S%z'), 'client': client[0], 'method': scope['method'],
            'path': scope['path'][:200], 'status': status, 'ms': round(1000 * seconds, 3),
        }  # fmt: skip
        state = scope['state']
        line.update({name: state[name] for name in ('model', 'stitch', 'refused') if name in state})
        _access.info(json.dumps(line))
