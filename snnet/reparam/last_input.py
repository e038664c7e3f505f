"""What flows into a module: a pass over images that changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.modes import eval_mode, still_statistics
from .block import as_map

_log = logging.getLogger(__name__)


class LastInput:
    """The last input of a network in train mode, kept to calibrate new branches with.

    Args:
        network: is watched.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.args: tuple[Any, ...] | None = None
        self.kwargs: dict[str, Any] = {}

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is network and module.training:  # copies of the network have copies of this hook
                self.args, self.kwargs = args, kwargs

        self._handle = network.register_forward_pre_hook(note, with_kwargs=True)

    def stop(self) -> None:
        """Watches no more and lets the input go."""
        self._handle.remove()
        self.args = None

    def use(self, images: Tensor) -> None:
        """Takes these images for the last input."""
        self.args, self.kwargs = (images,), {}

    @property
    def images(self) -> Tensor | None:
        """Two images, where the network takes images and nothing else."""
        alone = self.args is not None and len(self.args) == 1 and not self.kwargs
        return self.args[0][:2] if self.args and alone and isinstance(self.args[0], Tensor) else None

    def inputs(self, names: list[str]) -> dict[str, Tensor]:
        """What the last input makes of the inputs of some modules (N, in, H, W); tells which it does not reach."""
        found: dict[str, Tensor] = {}
        if names and self.args is not None:
            found = inputs_of(self.network, names, self.args, self.kwargs)
            for name in names:  # of a StitchableNet whose last stitch ran elsewhere
                stitch = None if name in found else self._stitch_with(name)
                if stitch is not None:
                    found |= inputs_of(self.network, [name], self.args[:1], {'stitch': stitch})
        found = {name: x for name, x in found.items() if bool(x.isfinite().all())}
        for name in names:
            if name not in found:
                _log.warning('%s is not calibrated: nothing finite reached it from the last input in train mode', name)
        return found

    def _stitch_with(self, name: str) -> int | None:
        net: Any = self.network
        stitches = range(len(getattr(net, 'stitches', ())))
        return next((stitch for stitch in stitches if f'{name}.weight' in net.parameter_names(stitch)), None)


def inputs_of(
    network: nn.Module, blocks: Iterable[str], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """What flows into some modules in one pass, as maps (N, in, H, W).

    BatchNorms run in the mode that they are in and everything else in eval mode, so that nothing is drawn; running
    statistics stay as they are.
    """
    found: dict[str, Tensor] = {}
    handles = []
    for name in blocks:
        module = network.get_submodule(name)

        def note(module: nn.Module, args: Any, name: str = name) -> None:
            found.setdefault(name, as_map(module, args[0].detach()))

        handles.append(module.register_forward_pre_hook(note))
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    try:
        with still_statistics(network), eval_mode(network), torch.no_grad():
            for norm in norms:
                norm.train()
            network(*args, **(kwargs or {}))
    finally:
        for handle in handles:
            handle.remove()
    return found
