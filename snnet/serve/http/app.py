"""The ASGI application of a service."""

# No `from __future__ import annotations`: FastAPI looks at the annotations of the routes, which are local classes.

from typing import TYPE_CHECKING, Any

from ...errors import MissingExtra
from ..service.refusal import Refusal
from ..service.service import Service
from . import infer_route, status_routes
from .decode_pool import DecodePool
from .direct_routes import DirectRoutes
from .http_limits import HttpLimits
from .middleware import Application, Gate
from .page import add_page
from .predict_route import openapi_of_predict, predict
from .reload_route import reload
from .replies import EXAMPLE, refusal_reply
from .shared_state import Context
from .telemetry import Telemetry

if TYPE_CHECKING:
    from fastapi import FastAPI

_ERROR = {'error': {'code': 'deadline', 'message': 'a deadline of 5 ms cannot be met now', 'retry_after_ms': 12.5}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {'description': 'One result per image', 'content': {'application/json': {'example': EXAMPLE}}},
    **{
        status: {'description': text, 'content': {'application/json': {'example': _ERROR}}}
        for status, text in {
            413: 'Too many bytes, pixels or images',
            415: 'Neither an image, an array nor a form',
            422: 'A request that can never be answered',
            429: 'The deadline cannot be met now; Retry-After says when to try again',
            500: 'The network failed',
            503: 'Starting, draining, or the worker was replaced',
        }.items()
    },
}


def make_app(
    service: Service,
    limits: HttpLimits | None = None,
    *,
    decoders: int = 2,
    key: str | None = None,
    reload_token: str | None = None,
    log_access: bool = False,
) -> Application:
    """The ASGI application of a service: any ASGI server runs it.

    Args:
        service: what computes; start it, or nothing is answered.
        limits: what clients may send.
        decoders: threads that decode images.
        key: what clients have to know; None lets everybody in.
        reload_token: what a client has to know to reload a net; None where no client may.
        log_access: write a line of JSON per request.

    Raises:
        MissingExtra: FastAPI is not installed.
    """
    try:
        import fastapi
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
    except ImportError as error:
        packages = ['fastapi', 'uvicorn', 'prometheus_client', 'python-multipart']
        raise MissingExtra('serving', packages, 'serve', error) from error
    limits = limits or HttpLimits()
    pool = DecodePool(decoders, limits.max_decoding)
    context = Context(service, limits, pool, Telemetry(service), reload_token)
    app = fastapi.FastAPI(
        title='snnet', description='An elastic network that keeps deadlines.', docs_url=None, redoc_url=None
    )
    _add_own_routes(app, context)
    _add_status_routes(app, context)
    _add_v2_routes(app, context)
    add_page(app)

    @app.exception_handler(Refusal)
    async def refuse(request: fastapi.Request, refusal: Refusal) -> fastapi.Response:
        request.state.refused = refusal.reason
        return refusal_reply(refusal, request.url.path.startswith('/v2'))

    return Gate(DirectRoutes(app, context), key, log_access)


def _add_own_routes(app: 'FastAPI', context: Context) -> None:
    from fastapi import Request, Response

    @app.post('/v1/predict', openapi_extra=openapi_of_predict(), responses=RESPONSES, summary='Images to labels')
    async def predict_images(request: Request) -> Response:
        return await predict(context, request)

    @app.post('/v1/reload', summary='Swap a net for what its folder holds now')
    async def reload_net(request: Request) -> Response:
        return await reload(context, request)


def _add_status_routes(app: 'FastAPI', context: Context) -> None:
    from fastapi import Response

    @app.get('/healthz', summary='Whether the process can go on')
    async def healthz() -> Response:
        return status_routes.health(context)

    @app.get('/readyz', summary='Whether requests are answered')
    async def readyz() -> Response:
        return status_routes.readiness(context)

    @app.get('/metrics', summary='Metrics for Prometheus')
    async def metrics() -> Response:
        return status_routes.metrics(context)

    @app.get('/v1/status', summary='The last ten seconds')
    async def last_seconds() -> Response:
        return status_routes.status(context)

    @app.get('/v1/stitches', summary='The nets, their stitches and their expected times')
    async def all_stitches() -> Response:
        return status_routes.stitches(context)


def _add_v2_routes(app: 'FastAPI', context: Context) -> None:
    """The routes of the Open Inference Protocol."""
    from fastapi import Request, Response

    @app.get('/v2', summary='What the server is')
    async def server_metadata() -> Response:
        return infer_route.server_metadata()

    @app.get('/v2/health/live', summary='Whether the process can go on')
    async def live() -> Response:
        return status_routes.health(context)

    @app.get('/v2/health/ready', summary='Whether requests are answered')
    async def ready() -> Response:
        return status_routes.readiness(context)

    @app.get('/v2/models/{name}', summary='What a net takes and gives')
    @app.get('/v2/models/{name}/versions/{version}', include_in_schema=False)
    async def model_metadata(name: str, version: str | None = None) -> Response:
        return infer_route.model_metadata(context, name, version)

    @app.get('/v2/models/{name}/ready', summary='Whether a net answers')
    @app.get('/v2/models/{name}/versions/{version}/ready', include_in_schema=False)
    async def model_ready(name: str, version: str | None = None) -> Response:
        return infer_route.model_readiness(context, name, version)

    @app.post('/v2/models/{name}/infer', summary='Prepared images to logits')
    @app.post('/v2/models/{name}/versions/{version}/infer', include_in_schema=False)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        return await infer_route.infer(context, request, name, version)
