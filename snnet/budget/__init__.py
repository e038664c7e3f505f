"""Records of stitches, the frontier among them, latency tables, and the choice of a stitch under a budget. No torch."""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
