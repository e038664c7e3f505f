"""A line for a network without an adapter, found by recording what it does with an image (see README.md)."""

from ...utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
