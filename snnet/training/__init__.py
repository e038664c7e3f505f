"""Training runs that can be left alone: they resume, stop on request and end bit for bit the same."""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
