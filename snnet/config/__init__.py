"""Settings: typed sections with their defaults, YAML files, command-line flags and recipes."""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
