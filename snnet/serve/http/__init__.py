"""The service over HTTP: routes, parsing with limits, metrics, access log, the page, and the server's life."""

from ...utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
