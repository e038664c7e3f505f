"""A net that answers requests in this process: queues, worker, latency tables, reload. It knows no HTTP."""

from ...utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
