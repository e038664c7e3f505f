"""What joins two anchors, and which stitches there are."""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
