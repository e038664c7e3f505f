"""What is computed from a few images: stitch layers by least squares, and BatchNorm statistics per stitch."""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
