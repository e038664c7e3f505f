"""`snnet serve NET [NET ...]`: nets as a service that keeps deadlines, over HTTP."""

from __future__ import annotations

import logging
import sys

from ..serve.serve_settings import ServeSettings


def run(settings: ServeSettings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        SnnetError: a setting is out of range, a folder holds no net, or the port is in use.
    """
    import torch  # here, so that --help does not load it

    from ..profiling.memory import peak_memory
    from ..serve.build_service import build_service
    from ..serve.http.server import bind, serve

    service, app = build_service(settings)
    if settings.access_log:
        access = logging.getLogger('snnet.access')
        access.propagate = False
        access.handlers = [logging.StreamHandler(sys.stdout)]
    with bind(settings.host, settings.port) as bound:
        torch.set_num_interop_threads(1)  # one batch runs at a time, and has no parts that run beside each other
        peak_memory(lambda: None, torch.device('cpu'))  # torch's profiler has to be set up by the main thread
        serve(app, service, bound, settings.limits, settings.drain_seconds)
