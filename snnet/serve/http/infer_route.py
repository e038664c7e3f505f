"""The Open Inference Protocol v2, as KServe, Triton and their clients speak it, with binary tensors.

https://github.com/kserve/open-inference-protocol (REST), and Triton's extension for binary tensor data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..service.refusal import Refusal
from ..service.served_net import ServedNet
from ..service.ticket import ImageAnswer
from .decode_pool import INLINE
from .infer_request import INPUT, LOGITS, STITCH, InferRequest, parse_infer
from .read_body import read_body
from .replies import json_reply
from .shared_state import Context

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

HEADER = 'inference-header-content-length'
"""Header with the number of bytes of JSON in front of binary tensors."""
_SHORT = 4
"""Digits of the length of the JSON, up to which reading it takes less time than handing it to a thread."""
VERSION = '1'
"""Every net has this version for the protocol, whatever was reloaded."""


def server_metadata() -> Response:
    """What the server is."""
    from ... import __version__

    return json_reply({'name': 'snnet', 'version': __version__, 'extensions': ['binary_tensor_data']})


def model_metadata(context: Context, name: str, version: str | None) -> Response:
    """What a net takes and gives."""
    served = find(context, name, version)
    return json_reply(
        {
            'name': served.name,
            'versions': [VERSION],
            'platform': 'pytorch_snnet',
            'inputs': [{'name': INPUT, 'datatype': 'FP32', 'shape': [-1, *served.input_size]}],
            'outputs': [
                {'name': LOGITS, 'datatype': 'FP32', 'shape': [-1, served.net.num_classes]},
                {'name': STITCH, 'datatype': 'INT64', 'shape': [-1]},
            ],
        }
    )


def model_readiness(context: Context, name: str, version: str | None) -> Response:
    """Whether a net answers."""
    served, ready = find(context, name, version), context.service.ready
    return json_reply({'name': served.name, 'ready': ready}, 200 if ready else 503)


async def infer(context: Context, request: Request, name: str, version: str | None) -> Response:
    """Answers a request for the logits of prepared images.

    Raises:
        Refusal: it gets no answer.
    """
    service, served = context.service, None
    arrived = context.arrival_of(request)
    try:
        served = find(context, name, version)
        request.state.model = served.name
        service.check_open()
        body = await read_body(request, context.limits)
        header = request.headers.get(HEADER)
        given = (body, header, served, context.limits, service.plan.deadline_ms)
        is_quick = header is not None and len(header) <= _SHORT and len(body) <= INLINE
        parsed = parse_infer(*given) if is_quick else await context.pool.run(parse_infer, *given)
        answers = await context.answers(served, parsed.images, parsed.options, arrived)
    except Refusal as refusal:
        context.telemetry.refused(served, refusal)
        raise
    request.state.stitch = answers[0].stitch
    return _reply(served, parsed, answers)


def find(context: Context, name: str, version: str | None) -> ServedNet:
    """The net of a name.

    Raises:
        Refusal: there is none, or not of this version.
    """
    if version not in (None, VERSION):
        raise Refusal('unknown', f"net '{name[:100]}' has version {VERSION} only")
    return context.service.net(name)


def _reply(served: ServedNet, parsed: InferRequest, answers: Sequence[ImageAnswer]) -> Response:
    from starlette.responses import Response

    values = {
        LOGITS: ('FP32', np.stack([answer.logits for answer in answers])),
        STITCH: ('INT64', np.array([answer.stitch for answer in answers], np.int64)),
    }
    outputs, behind = list[dict[str, Any]](), b''
    for name, binary in parsed.outputs.items():
        kind, array = values[name]
        output: dict[str, Any] = {'name': name, 'datatype': kind, 'shape': list(array.shape)}
        if binary:
            data = array.tobytes()
            output['parameters'] = {'binary_data_size': len(data)}
            behind += data
        else:
            output['data'] = array.ravel().tolist()
        outputs.append(output)
    table = {'model_name': served.name, 'model_version': VERSION, 'outputs': outputs}
    if parsed.id:
        table['id'] = parsed.id
    if not behind:
        return json_reply(table)
    head = json.dumps(table, separators=(',', ':')).encode()
    return Response(head + behind, headers={HEADER: str(len(head)), 'Content-Type': 'application/octet-stream'})
