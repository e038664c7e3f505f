"""Services of a tiny net, whose latencies are made up."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

import snnet
from snnet.budget.latency_table import Latency, LatencyTable
from snnet.net.hardware import setup_of
from snnet.serve.http.app import make_app
from snnet.serve.http.http_limits import HttpLimits
from snnet.serve.http.protocol import limited_protocol
from snnet.serve.http.server import bind
from snnet.serve.service.served_net import ServedNet
from snnet.serve.service.service import Service, ServicePlan
from tests.helpers.families import family_net

PATIENT = ServicePlan(deadline_ms=20_000)
"""No machine is so busy that a tiny net takes longer."""


@cache
def _tiny() -> tuple[snnet.StitchableNet, list[snnet.Record]]:
    net = family_net('vit').eval().requires_grad_(False)
    snnet.measure_costs(net)
    return net, [replace(r, top1=50 + 20 * r.flops / 1e6, n=100) for r in net.records]


def tiny_net(name: str = 'tiny', evaluated: bool = True, tables: bool = True) -> ServedNet:
    """A net of two small ViTs; its latencies are a millisecond and one per 100,000 FLOPs."""
    net, records = _tiny()
    served = ServedNet(name, Path('tiny'), net)
    served.records = records if evaluated else [replace(r, top1=None, n=None) for r in records]
    if tables:
        served.use_tables([made_up_table(served, batch) for batch in (1, 4)])
    return served


def made_up_table(served: ServedNet, batch: int) -> LatencyTable:
    times = {r.stitch: 1 + batch * r.flops / 1e5 for r in served.records}
    rows = {stitch: Latency(ms, ms, ms, 1000) for stitch, ms in times.items()}
    return LatencyTable(setup_of(served.net), batch, None, rows)


def save_net(folder: Path) -> Path:
    """Writes a net with accuracies, and with latency tables that hold here."""
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=5, img_size=32).eval()
    net.records = [replace(record, top1=50.0 + record.stitch, n=9) for record in net.records]
    net.save_pretrained(folder)
    (folder / 'profiles').mkdir()
    for batch in (1, 4):
        rows = {r.stitch: Latency(ms := 1 + batch * r.flops / 1e7, ms, ms, 1000) for r in net.records}
        table = LatencyTable(setup_of(net), batch, net.fingerprint, rows)
        (folder / 'profiles' / table.file_name).write_text(table.to_json())
    return folder


class PreparedService(Service):
    """A service of nets that have their tables already, so that it starts at once."""

    def _prepare(self, served: ServedNet) -> None:
        if not served.tables:
            super()._prepare(served)


@contextmanager
def running(*nets: ServedNet, plan: ServicePlan = PATIENT, **more: Any) -> Iterator[Service]:
    service = PreparedService(nets or [tiny_net()], plan, **more)
    service.start()
    try:
        yield service
    finally:
        service.close()


@contextmanager
def client_of(
    *nets: ServedNet, plan: ServicePlan = PATIENT, limits: HttpLimits | None = None,
    load: Callable[[str, int], ServedNet] | None = None, **more: Any,
) -> Iterator[TestClient]:  # fmt: skip
    """A client of a service in this process; `client.service` is the service."""
    with running(*nets, plan=plan, load=load) as service:
        client = TestClient(make_app(service, limits, **more))
        client.service = service
        yield client
        client.close()


def picture(format: str = 'PNG', size: tuple[int, int] = (40, 30), color: str = 'red', **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new('RGB', size, color).save(file, format, **options)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@contextmanager
def live(*nets: ServedNet, plan: ServicePlan = PATIENT, limits: HttpLimits | None = None, **more: Any) -> Iterator[str]:
    """The address of a service that listens on a port of this machine, in a thread of this process."""
    limits = limits or HttpLimits()
    with running(*nets, plan=plan) as service:
        app = make_app(service, limits, **more)
        config = uvicorn.Config(
            app, http=limited_protocol(limits), ws='none', lifespan='off', log_config=None,
            access_log=False,
        )  # fmt: skip
        server = uvicorn.Server(config)
        with bind('127.0.0.1', 0) as bound:
            thread = threading.Thread(target=server.run, kwargs={'sockets': [bound]})
            thread.start()
            while not server.started:
                time.sleep(0.001)
            try:
                yield f'http://127.0.0.1:{bound.getsockname()[1]}'
            finally:
                server.should_exit = True
                thread.join(20)
