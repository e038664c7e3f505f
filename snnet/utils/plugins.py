"""Python files from outside the package that register networks and adapters."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ..errors import SnnetError, reason_of


def import_plugins(files: Sequence[str]) -> None:
    """Imports the Python files that the user named with `--plugin`. A file that is already imported is skipped.

    Raises:
        SnnetError: a file does not exist, is not a Python file, or raises an error.
    """
    for file in files:
        path = Path(file)
        if not path.is_file():
            raise SnnetError(f"plugin file '{file}' does not exist")
        if path.stem in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise SnnetError(f"plugin '{file}' is not a Python file: its name ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # timm and the processes of a data loader look modules up by name
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[path.stem]
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
            place = f' in line {lines[-1]}' if lines else ''
            raise SnnetError(f"plugin '{file}' stops{place}: {type(error).__name__}: {reason_of(error)}") from error
