"""Stitches as files (torch.export, ONNX) that run without this package."""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
