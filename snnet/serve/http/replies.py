"""Answers and refusals as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..service.refusal import Refusal
from ..service.served_net import ServedNet
from ..service.ticket import ImageAnswer
from .request_options import RequestOptions

if TYPE_CHECKING:
    from starlette.responses import Response

STATUS = {
    'deadline': 429, 'busy': 429, 'given_up': 503, 'failed': 500, 'worker_lost': 503, 'timeout': 503,
    'draining': 503, 'starting': 503, 'unknown': 404, 'invalid': 422, 'too_large': 413, 'unsupported': 415,
    'forbidden': 401, 'gone': 499,
}  # fmt: skip
"""HTTP status of each reason of a refusal."""
EXAMPLE = {
    'model': 'net', 'version': 1, 'deadline_ms': 50.0, 'total_ms': 12.1, 'in_time': True,
    'results': [
        {
            'predictions': [{'label': 'tabby cat', 'class': 281, 'probability': 0.81}],
            'stitch': 24, 'legs': 'deit_tiny[:6] > deit_small[6:]', 'top1': 77.1, 'flops': 2900000000,
            'params': 14000000, 'batch': 3, 'waited_ms': 1.9, 'computed_ms': 8.2,
        }
    ],
}  # fmt: skip
"""A reply of /v1/predict."""


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as a response of JSON."""
    from starlette.responses import Response

    body = json.dumps(value, ensure_ascii=False, separators=(',', ':')).encode()
    return Response(body, status, dict(headers or {}), 'application/json')


def refusal_reply(refusal: Refusal, v2: bool = False) -> Response:
    """A refusal as a response; the Open Inference Protocol (`v2`) has a sentence where ours has a table."""
    headers = {}
    error: dict[str, Any] = {'code': refusal.reason, 'message': str(refusal)}
    if refusal.retry_after is not None and math.isfinite(refusal.retry_after):
        headers['Retry-After'] = str(max(1, math.ceil(refusal.retry_after)))
        error['retry_after_ms'] = round(1000 * refusal.retry_after, 3)
    if refusal.closes:
        headers['Connection'] = 'close'
    if refusal.reason == 'forbidden':
        headers['WWW-Authenticate'] = 'Bearer'
    return json_reply({'error': str(refusal) if v2 else error}, STATUS[refusal.reason], headers)


def prediction_of(
    served: ServedNet, answers: Sequence[ImageAnswer], options: RequestOptions, arrived: float, now: float
) -> dict[str, Any]:
    """The reply to a request of /v1/predict."""
    deadline = options.demand.deadline_ms
    return {
        'model': served.name,
        'version': served.version,
        'results': [_result_of(served, answer, options.top) for answer in answers],
        'deadline_ms': deadline,
        'total_ms': round(1000 * (now - arrived), 3),
        'in_time': now - arrived <= deadline / 1000,
    }


def _result_of(served: ServedNet, answer: ImageAnswer, top: int) -> dict[str, Any]:
    record = served.records[answer.stitch]
    return {
        'predictions': labels_of(served, answer.logits, top),
        'stitch': answer.stitch,
        'legs': record.legs,
        'top1': record.top1,
        'flops': record.flops,
        'params': record.params,
        'batch': answer.batch,
        'waited_ms': round(1000 * answer.waited, 3),
        'computed_ms': round(1000 * answer.computed, 3),
    }


def labels_of(served: ServedNet, logits: np.ndarray, top: int) -> list[dict[str, Any]]:
    """The most likely classes with their probabilities: each by itself where images have several labels.

    Args:
        served: the net.
        logits: (classes,).
        top: how many classes.
    """
    with np.errstate(over='ignore', invalid='ignore'):
        if served.net.several_labels:
            order, shares = -logits, 1 / (1 + np.exp(-logits))
        else:
            shares = np.exp(logits - logits.max())
            shares = shares / shares.sum()
            order = -shares
    first = np.argsort(order, kind='stable')[:top]
    return [
        {'label': served.labels[i], 'class': int(i), 'probability': round(float(shares[i]), 6)} for i in first.tolist()
    ]
