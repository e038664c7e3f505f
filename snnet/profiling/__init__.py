"""Latency and memory of every stitch, measured on this machine."""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
