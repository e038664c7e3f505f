"""The stitchable net, the ways to make one, and the ways to run it."""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
