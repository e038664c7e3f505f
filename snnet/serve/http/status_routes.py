"""What can be asked about the service: health, metrics, stitches, and the last seconds."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...budget.frontier import frontier
from ..service.served_net import ServedNet
from .replies import json_reply
from .shared_state import Context

if TYPE_CHECKING:
    from fastapi import Response


def health(context: Context) -> Response:
    """200 while the process can go on; 503 once it has to be restarted."""
    service = context.service
    healthy = service.worker.healthy and service.state != 'broken'
    return json_reply({'healthy': healthy, 'workers_lost': service.worker.lost}, 200 if healthy else 503)


def readiness(context: Context) -> Response:
    """200 while requests are answered; 503 during the warm-up, while draining, and once too many batches hang."""
    ready = context.service.ready
    return json_reply({'ready': ready, 'state': context.service.state}, 200 if ready else 503)


def metrics(context: Context) -> Response:
    """The metrics in the format of Prometheus."""
    from fastapi import Response

    text, kind = context.telemetry.exposition()
    return Response(text, headers={'Content-Type': kind})


def status(context: Context) -> Response:
    """The last ten seconds of every net."""
    service, now = context.service, context.service.clock()
    return json_reply(
        {
            'state': service.state,
            'ready': service.ready,
            'waiting': service.worker.waiting,
            'decoding': context.pool.pending,
            'deadline_ms': service.plan.deadline_ms,
            'models': {name: context.telemetry.recent[name].summary(now) for name in service.nets},
        }
    )


def stitches(context: Context) -> Response:
    """Every net with its stitches, its frontier and the times that the controller expects."""
    return json_reply({'models': [_described(served) for served in context.service.nets.values()]})


def _described(served: ServedNet) -> dict[str, Any]:
    answering = {} if not served.tables else {choice.stitch: choice for choice in served.choices.choices}
    return {
        'name': served.name,
        'version': served.version,
        'title': served.net.title,
        'weights': served.net.fingerprint,
        'input_size': served.input_size,
        'preprocessing': served.preparation,
        'classes': served.net.num_classes,
        'evaluated': served.evaluated,
        'frontier': [record.stitch for record in frontier(served.records)],
        'stitches': [{k: v for k, v in asdict(record).items() if v is not None} for record in served.records],
        'choices': [
            {'stitch': stitch, 'batch_ms': [round(1000 * second, 4) for second in choice.seconds[1:]]}
            for stitch, choice in answering.items()
        ],
        'tables': [{'batch': table.batch, 'setup': asdict(table.setup)} for table in served.tables],
    }
