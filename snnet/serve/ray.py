"""The service on Ray Serve: as many replicas as the load needs, on as many machines as there are.

A config file of Ray Serve names `app` as `import_path: snnet.serve.ray:app`, with the settings of `snnet serve` as
`args`. Every replica has a controller. Requests wait in the replica, where the controller sees them. Scheduling,
routing, restarting and scaling are Ray's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.parse import convert
from ..config.sections import from_flat, options_of
from ..errors import MissingExtra, SnnetError, did_you_mean
from .build_service import build_service
from .serve_settings import ServeSettings

ELSEWHERE = ('host', 'port', 'drain_seconds')
"""Settings of `snnet serve` that Ray Serve has under other names."""
OPTIONS: dict[str, Any] = {
    'max_ongoing_requests': 256,  # the controller refuses what cannot be answered; it has to see it
    'autoscaling_config': {'min_replicas': 1, 'max_replicas': 4, 'target_ongoing_requests': 8},
    'health_check_period_s': 2,
    'health_check_timeout_s': 10,
    'graceful_shutdown_timeout_s': 20,
}
"""Options of the deployment, where the config file of Ray Serve gives no others."""


class Replica:
    """One replica: a service with its worker.

    Args:
        settings: of `snnet serve`.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.service, self._app = build_service(settings)
        self.service.start()

    def __serve_build_asgi_app__(self) -> Any:
        """The application that Ray Serve hands requests to."""
        return self._app

    def check_health(self) -> None:
        """Tells Ray Serve to replace this replica once too many batches hang."""
        if not self.service.worker.healthy:
            raise RuntimeError('too many batches hang: this replica has to be replaced')

    def __del__(self) -> None:
        if hasattr(self, 'service'):
            self.service.close()


def app(args: Mapping[str, Any]) -> Any:
    """The application of Ray Serve.

    Args:
        args: settings of `snnet serve` by name, such as `{'nets': ['runs/net'], 'deadline_ms': 50}`.

    Raises:
        SnnetError: an unknown setting, or a value of the wrong type.
        MissingExtra: Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtra('serving on many machines', ['ray[serve]'], 'ray', error) from error
    deployment = serve.deployment(name='snnet', **OPTIONS)(serve.ingress()(Replica))
    return deployment.bind(settings_of(args))


def settings_of(args: Mapping[str, Any]) -> ServeSettings:
    """Settings of a replica.

    Raises:
        SnnetError: an unknown setting, or a value of the wrong type.
    """
    options = options_of(ServeSettings)
    known = [name for name in options if name not in ELSEWHERE]
    for name in args:
        if name not in known:
            raise SnnetError(f"'{name}' is not a setting of a replica{did_you_mean(name, known)}")
    return from_flat(ServeSettings, {name: convert(name, value, options[name].hint) for name, value in args.items()})
