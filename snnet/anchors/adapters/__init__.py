"""One adapter per family: its layout, stem, stages and head."""

from ...utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
