"""Images: found, ordered, decoded, augmented and batched."""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
