"""Metrics of the service for Prometheus, and the last seconds for the page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..service.demand import Demand
from ..service.refusal import Refusal
from ..service.served_net import ServedNet
from ..service.service import Service
from ..service.ticket import ImageAnswer
from .recent_load import Happening, Recent

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Telemetry:
    """Counts what happens to the images of requests.

    Args:
        service: whose requests they are.
    """

    def __init__(self, service: Service) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

        self.registry = registry = CollectorRegistry()
        self._service = service
        self.recent: defaultdict[str, Recent] = defaultdict(Recent)
        self._labelled: dict[tuple[Any, ...], Any] = {}
        model = ['model']
        self._images = Counter(
            'snnet_images', 'Images by what happened to them', [*model, 'outcome'], registry=registry
        )
        self._answers = Counter('snnet_answers', 'Answered images by stitch', [*model, 'stitch'], registry=registry)
        self._latency = Histogram(
            'snnet_latency_seconds', 'From arrival to answer', model, buckets=SECONDS, registry=registry
        )
        self._waiting = Histogram(
            'snnet_queue_seconds', 'From admission to batch', model, buckets=SECONDS, registry=registry
        )
        self._batch = Histogram('snnet_batch_size', 'Batch of an image', model, buckets=BATCHES, registry=registry)
        self._top1 = Summary(
            'snnet_served_top1', 'Accuracy in percent, by the records, of what answered', model, registry=registry
        )
        attainment = Gauge('snnet_attainment', 'Share answered in time over ten seconds', model, registry=registry)
        for name in service.nets:
            attainment.labels(name).set_function(partial(self._attainment, name))
        for title, text, value in (
            ('snnet_queue_length', 'Images that wait', lambda: float(service.worker.waiting)),
            ('snnet_ready', 'Whether requests are answered', lambda: float(service.ready)),
            ('snnet_workers_lost', 'Workers that hung or died', lambda: float(service.worker.lost)),
        ):
            Gauge(title, text, registry=registry).set_function(value)

    def answered(self, served: ServedNet, demand: Demand, seconds: float, answers: Sequence[ImageAnswer]) -> None:
        """Notes the answers to the images of a request, so many seconds after it arrived."""
        name, in_time = served.name, seconds <= demand.deadline_ms / 1000
        for answer in answers:
            self._of(self._images, name, 'in_time' if in_time else 'late').inc()
            self._of(self._answers, name, str(answer.stitch)).inc()
            self._of(self._latency, name).observe(seconds)
            self._of(self._waiting, name).observe(answer.waited)
            self._of(self._batch, name).observe(answer.batch)
            top1 = served.records[answer.stitch].top1
            if top1 is not None:
                self._of(self._top1, name).observe(top1)
            self.recent[name].add(Happening(self._service.clock(), in_time, answer.stitch, top1, seconds))

    def refused(self, served: ServedNet | None, refusal: Refusal, count: int = 1) -> None:
        """Notes a request that got no answer; malformed ones count as an outcome, but not against attainment."""
        name = '' if served is None else served.name
        self._of(self._images, name, refusal.reason).inc(count)
        if served is not None and refusal.reason not in ('invalid', 'too_large', 'unsupported', 'unknown', 'gone'):
            for _ in range(count):
                self.recent[name].add(Happening(self._service.clock(), False, None, None, 0.0))

    def _of(self, metric: Any, *labels: str) -> Any:
        """The metric with labels, remembered because looking it up takes longer than counting."""
        key = (metric, *labels)
        if key not in self._labelled:
            self._labelled[key] = metric.labels(*labels)
        return self._labelled[key]

    def exposition(self) -> tuple[bytes, str]:
        """All metrics as Prometheus reads them, and their content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _attainment(self, name: str) -> float:
        percent = self.recent[name].attainment(self._service.clock())
        return 1.0 if percent is None else percent / 100
