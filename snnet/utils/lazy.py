"""Packages that load their modules when these are first used, so that importing them costs nothing (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any


def lazy_package(
    package: str, exports: Mapping[str, Sequence[str]] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package.

    Every module of the package becomes an attribute, such as `snnet.net.cuda_graphs` after a plain `import snnet`, and
    so does every exported name, such as `snnet.serve.Controller`. Only what is used is loaded.

    Args:
        package: dotted name of the package, its `__name__`.
        exports: the public names of each module, by the module's name within the package.
    """
    module_of = {name: module for module, names in (exports or {}).items() for name in names}

    def modules() -> set[str]:
        return {module.name for module in iter_modules(sys.modules[package].__path__)}

    def get_attribute(name: str) -> Any:
        if name in module_of:
            value = getattr(import_module(f'{package}.{module_of[name]}'), name)
            setattr(sys.modules[package], name, value)  # found directly from now on
            return value
        if name in modules():
            return import_module(f'{package}.{name}')
        raise AttributeError(f"module '{package}' has no attribute '{name}'", name=name, obj=sys.modules[package])

    def list_attributes() -> list[str]:
        return sorted({*module_of, *modules()})

    return get_attribute, list_attributes
