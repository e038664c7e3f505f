"""What is computed from a few images: stitch layers, and what belongs to single stitches."""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
