"""Files from outside the package that bring networks and adapters with them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import SnnetError


def import_plugins(files: Sequence[str]) -> None:
    """Runs Python files that the user named, so that they can register networks and adapters.

    Raises:
        SnnetError: a file is not there.
    """
    for file in files:
        path = Path(file)
        if not path.is_file():
            raise SnnetError(f"there is no plugin file '{file}'")
        if path.stem in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # timm finds a network's module by name, and so does a data loader's process
        spec.loader.exec_module(module)
