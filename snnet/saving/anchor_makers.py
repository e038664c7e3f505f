"""Registry of what builds the networks of saved nets that timm does not make.

The room that makes such networks enters itself when it is imported, which `import snnet` sees to. Nothing heavy is
loaded until a net with such a network is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

AnchorMaker = Callable[[Any], Any]
"""Takes an `AnchorRow` to its `Anchor`, with random weights; both are loaded too late to be named here."""
_loaders: dict[str, Callable[[], AnchorMaker]] = {}


def register_maker(name: str, load: Callable[[], AnchorMaker]) -> None:
    """Lets rows of config.json whose `model` is `name` be built by what `load` returns instead of timm."""
    _loaders[name] = load


def has_maker(name: str) -> bool:
    """Whether a maker is registered under this name."""
    return name in _loaders


def load_maker(name: str) -> AnchorMaker:
    """The maker registered under a name, imported now if need be."""
    return _loaders[name]()
