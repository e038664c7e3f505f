"""The command `snnet`, one file per subcommand."""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
