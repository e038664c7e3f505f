"""The accuracy of every stitch, measured in one pass over the images."""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
