"""Small tools of any program: files, logs, seeds, processes. Nothing here knows what a network is."""

from .lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
