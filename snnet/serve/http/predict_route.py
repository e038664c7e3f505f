"""POST /v1/predict: images to labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..service.refusal import Refusal
from ..service.served_net import ServedNet
from .decode_image import read_npy
from .decode_pool import INLINE
from .read_body import read_body
from .read_images import NPY, read_images, split_form
from .replies import json_reply, prediction_of
from .request_options import RequestOptions, options_of
from .shared_state import Context

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def predict(context: Context, request: Request) -> Response:
    """Answers a request of /v1/predict.

    Raises:
        Refusal: it gets no answer.
    """
    service, arrived = context.service, context.arrival_of(request)
    served: ServedNet | None = None
    try:
        query = request.query_params.multi_items()
        options = options_of(query, service.plan.deadline_ms)
        served = service.net(options.model)
        kind = request.headers.get('content-type', '')
        reserve = context.reserve.within(options.demand.deadline_ms / 1000)
        if kind == NPY:
            service.check_time(served, options.demand, arrived, reserve)
        else:  # decoding takes longer than looking whether there is time for it
            service.check(served, options.demand, arrived, reserve)
        body = await read_body(request, context.limits)
        if kind == NPY and len(body) <= INLINE:
            asked, images = served, read_npy(body, served, context.limits)
        else:
            options, asked, images = await context.pool.run(_parse, context, body, kind, query)
        served, request.state.model = asked, asked.name
        answers = await context.answers(asked, images, options, arrived)
    except Refusal as refusal:
        context.telemetry.refused(served, refusal)
        raise
    request.state.stitch = answers[0].stitch
    return json_reply(prediction_of(asked, answers, options, arrived, service.clock()))


def _parse(
    context: Context, body: bytes, content_type: str, query: list[tuple[str, str]]
) -> tuple[RequestOptions, ServedNet, list[Tensor]]:
    """Returns options, net and prepared images of a request; runs in a thread of the pool."""
    fields, files = split_form(body, content_type, context.limits)
    options = options_of([*query, *fields], context.service.plan.deadline_ms)
    served = context.service.net(options.model)
    return options, served, read_images(files, served, context.limits)


def openapi_of_predict() -> dict[str, Any]:
    """The body of a request and its options, as OpenAPI describes them."""
    binary = {'schema': {'type': 'string', 'format': 'binary'}}
    form = {
        'schema': {
            'type': 'object',
            'properties': {'image': {'type': 'array', 'items': {'type': 'string', 'format': 'binary'}}},
        }
    }
    texts = {
        'model': ('string', 'name of the net (default: the first one)', 'net'),
        'deadline_ms': ('number', 'milliseconds from arrival to answer', 50),
        'min_top1': ('number', 'lowest acceptable accuracy in percent', 75),
        'flops': ('number', 'most multiply-adds per image', 1e9),
        'stitch': ('integer', 'the only stitch that may answer', 24),
        'top': ('integer', 'how many labels per image', 5),
    }
    return {
        'parameters': [
            {'name': name, 'in': 'query', 'schema': {'type': kind}, 'description': text, 'example': example}
            for name, (kind, text, example) in texts.items()
        ],
        'requestBody': {
            'required': True,
            'content': {
                **dict.fromkeys(('image/jpeg', 'image/png', 'image/webp', 'application/x-npy'), binary),
                'multipart/form-data': form,
            },
        },
    }
