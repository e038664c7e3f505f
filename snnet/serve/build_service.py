"""Builds the service that settings describe, and its application."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.sections import check_ranges
from ..errors import SnnetError
from .serve_settings import ServeSettings

if TYPE_CHECKING:
    from .http.middleware import Application
    from .service.net_process import NetProcess
    from .service.served_net import ServedNet
    from .service.service import Service

CAPACITY_SETTING = 'ONEDNN_PRIMITIVE_CACHE_CAPACITY'
PRIMITIVES = 8192
"""Operations that oneDNN keeps ready where a net computes: one for each layer and batch size of every stitch.

It keeps 1,024 unless told otherwise, which 16 batch sizes of three small networks exceed. Then it makes them again and
again, between activations that come and go, and the memory becomes full of holes.
"""


def build_service(settings: ServeSettings) -> tuple[Service, Application]:
    """The service that settings describe, not started yet, and its ASGI application.

    Raises:
        SnnetError: a setting is out of range, or a folder holds no net.
        MissingExtra: FastAPI is not installed.
    """
    import torch  # here, so that --help does not load it

    from ..utils.plugins import import_plugins
    from .http.app import make_app
    from .http.shared_state import read_secret
    from .service.served_net import load_served_net
    from .service.service import Service, ServicePlan

    check_ranges(settings)
    _check_deadlines(settings)
    os.environ.setdefault(CAPACITY_SETTING, str(PRIMITIVES))  # oneDNN reads it at its first operation
    sources = named_sources(settings.nets)
    key = read_secret(settings.api_key_file, 'API key')
    token = read_secret(settings.reload_token_file, 'reload token')
    import_plugins(settings.plugin)
    device = _device_of(settings)
    torch.set_num_threads(settings.threads or torch.get_num_threads())

    def load(name: str, version: int) -> ServedNet:
        return load_served_net(
            name, sources[name], device=device, dtype=settings.dtype, compiled=settings.compile, version=version
        )

    plan = ServicePlan(
        deadline_ms=settings.deadline_ms,
        longest_ms=settings.max_deadline_ms,
        largest_batch=settings.max_batch,
        warmup_seconds=settings.warmup_seconds,
        hang_seconds=settings.hang_seconds,
    )
    apart = settings.worker == 'process' and device == 'cpu' and os.name == 'posix'
    service = Service(
        [load(name, 1) for name in sources], plan, load, isolate=partial(_process_of, settings) if apart else None
    )
    app = make_app(
        service, settings.limits, decoders=settings.decoders, key=key, reload_token=token,
        log_access=settings.access_log,
    )  # fmt: skip
    return service, app


def _process_of(settings: ServeSettings, served: ServedNet) -> NetProcess:
    """The process in which a net computes, not started yet."""
    import torch

    from .service.net_process import Loading, NetProcess

    loading = Loading(
        served.name, str(served.folder), settings.dtype, settings.compile, served.version, torch.get_num_threads(),
        tuple(settings.plugin),
    )  # fmt: skip
    return NetProcess(served, loading)


def named_sources(nets: list[str]) -> dict[str, str]:
    """Folders or ids by the names that clients use: NAME in NAME=FOLDER, or the last part of the path.

    Raises:
        SnnetError: there is no net, two have the same name, or a name cannot be part of an address.
    """
    sources: dict[str, str] = {}
    for given in nets:
        name, mark, source = given.partition('=')
        if not mark or Path(given).is_dir():
            source = given
            name = Path(given.partition('@')[0]).resolve().name
        if not name or not name.replace('-', '').replace('_', '').replace('.', '').isalnum() or not name.isascii():
            raise SnnetError(f"'{name}' cannot be part of an address: name the net with NAME={source}")
        if name in sources:
            raise SnnetError(f"two nets are named '{name}': give one of them another name with NAME={source}")
        sources[name] = source
    if not sources:
        raise SnnetError('there is no net to serve: name a folder, or an id on the Hub')
    return sources


def _check_deadlines(settings: ServeSettings) -> None:
    if not (0 < settings.deadline_ms <= settings.max_deadline_ms < math.inf):
        raise SnnetError(
            f'deadline_ms is above 0 and at most max_deadline_ms, which is finite, not {settings.deadline_ms:g} and '
            f'{settings.max_deadline_ms:g}'
        )


def _device_of(settings: ServeSettings) -> str:
    import torch

    device = settings.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):  # torch built without CUDA asserts
        raise SnnetError(f"there is no device '{device}': use --device cpu") from None
    return device
