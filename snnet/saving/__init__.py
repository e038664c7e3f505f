"""The folder of a saved net, on disk or on the Hugging Face Hub; nothing here knows what a net is."""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
