"""Python code of a stretch of a recorded network."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor, fx, nn


class StretchCode:
    """Python code of a stretch, a function of the network and of what flows in; copies share it.

    Args:
        graph: the stretch; its modules and parameters are those of the network, by name.
    """

    def __init__(self, graph: fx.Graph) -> None:
        made = graph.python_code('self')
        self._set(made.src, made.globals)

    def _set(self, source: str, names: dict[str, Any]) -> None:
        self.source, self._names = source, names
        place: dict[str, Any] = dict(names)
        exec(compile(source, '<stretch of a recorded network>', 'exec'), place)
        self.run: Callable[[nn.Module, Tensor], Any] = place['forward']

    def __deepcopy__(self, memo: Any) -> StretchCode:
        return self

    def __getstate__(self) -> Any:
        modules = {key: value.__name__ for key, value in self._names.items() if isinstance(value, ModuleType)}
        return self.source, modules, {key: value for key, value in self._names.items() if key not in modules}

    def __setstate__(self, state: Any) -> None:
        source, modules, others = state
        self._set(source, {**{key: importlib.import_module(name) for key, name in modules.items()}, **others})
