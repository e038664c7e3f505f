"""A stretch of a recorded network as a module that runs it in the network itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...errors import CannotStitch
from .stretch_code import StretchCode


class Segment(nn.Module):
    """Runs a stretch of a network in the network itself, whose modules it looks up at every run.

    Its children are the modules that it calls, by number; none is registered here.

    Args:
        model: the network.
        paths: the modules of the network that it calls.
        codes: what to run in eval and in train mode.
        shape: the only input shape, without the batch, of a stretch that works for one image size; else None.
        title: what messages call it.
    """

    def __init__(
        self,
        model: nn.Module,
        paths: Sequence[str],
        codes: tuple[StretchCode, StretchCode],
        shape: tuple[int, ...] | None,
        title: str,
    ) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, which keeps it from being registered: the anchor holds it
        self._paths, self._codes, self._shape, self._title = tuple(paths), codes, shape, title

    def forward(self, x: Tensor) -> Any:
        """Features (N, ...) at the beginning of the stretch to those at its end."""
        if self._shape is not None and tuple(x.shape[1:]) != self._shape:
            sizes = ['x'.join(str(int(n)) for n in shape) for shape in (self._shape, x.shape[1:])]
            raise CannotStitch(f'{self._title} works for one image size only: it takes {sizes[0]}, not {sizes[1]}')
        model = self._model[0]
        return self._codes[model.training].run(model, x)

    @property
    def _modules(self) -> dict[str, nn.Module | None]:
        model = self.__dict__.get('_model')
        return {str(i): model[0].get_submodule(path) for i, path in enumerate(self._paths)} if model else {}

    @_modules.setter
    def _modules(self, value: Any) -> None:
        """Ignores the empty dict that nn.Module assigns."""

    def __getattr__(self, name: str) -> Any:
        if name.isdigit():
            return self._model[0].get_submodule(self._paths[int(name)])
        raise AttributeError(f'{type(self).__name__} has no attribute {name}')

    def __setattr__(self, name: str, value: Any) -> None:
        if name.isdigit():
            owner, _, leaf = self._paths[int(name)].rpartition('.')
            setattr(self._model[0].get_submodule(owner), leaf, value)
        else:
            super().__setattr__(name, value)
