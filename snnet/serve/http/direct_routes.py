"""The routes that compute, answered without FastAPI: its layers took a third of what a request cost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from ..service.refusal import Refusal
from .infer_route import infer
from .middleware import Application, Receive, Scope, Send
from .predict_route import predict
from .replies import refusal_reply
from .shared_state import Context

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_PREDICT, _MODELS, _INFER = '/v1/predict', '/v2/models/', '/infer'


class DirectRoutes:
    """An ASGI application that answers /v1/predict and /v2/models/NAME/infer, and leaves the rest to another one.

    Args:
        app: the other one.
        context: what the routes share.
    """

    def __init__(self, app: Application, context: Context) -> None:
        self._app, self._context = app, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        from starlette.requests import Request

        route = self._route(scope)
        if route is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await route(request)
        except Refusal as refusal:
            request.state.refused = refusal.reason
            response = refusal_reply(refusal, scope['path'] != _PREDICT)
        await response(scope, receive, send)

    def _route(self, scope: Scope) -> Callable[[Request], Awaitable[Response]] | None:
        if scope['type'] != 'http' or scope['method'] != 'POST':
            return None
        path: str = scope['path'][len(scope.get('root_path', '')) :]
        if path == _PREDICT:
            return partial(predict, self._context)
        if path.startswith(_MODELS) and path.endswith(_INFER):
            name, _, version = path[len(_MODELS) : -len(_INFER)].partition('/versions/')
            if name and '/' not in name + version:
                return partial(infer, self._context, name=name, version=version or None)
        return None
