"""The last input of a network in train mode, and what flows into its modules then."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.eval_mode import eval_mode, still_statistics
from .local_hook import LocalHook
from .rep_layers import as_map

_log = logging.getLogger(__name__)


class LastInput:
    """The last input of a network in train mode, kept to calibrate new branches with.

    Args:
        network: the network to watch.

    Attributes:
        args, kwargs: of the last call; `args` is None before it.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.args: tuple[Any, ...] | None = None
        self.kwargs: dict[str, Any] = {}
        self._handle = network.register_forward_pre_hook(LocalHook(self._note), with_kwargs=True)

    def stop(self) -> None:
        """Stops watching, and lets the input go."""
        self._handle.remove()
        self.args = None

    def use(self, images: Tensor | None) -> None:
        """Takes images (N, C, H, W), if there are any, for the last input."""
        if images is not None:
            self.args, self.kwargs = (images,), {}

    @property
    def images(self) -> Tensor | None:
        """Two images, if the network takes images and nothing else."""
        alone = self.args is not None and len(self.args) == 1 and not self.kwargs
        return self.args[0][:2] if self.args and alone and isinstance(self.args[0], Tensor) else None

    def inputs(self, names: list[str]) -> dict[str, Tensor]:
        """What flows into some modules for the last input, as maps (N, in, H, W); warns of those it does not reach."""
        found: dict[str, Tensor] = {}
        if names and self.args is not None:
            found = inputs_of(self.network, names, self.args, self.kwargs)
            for name in names:  # in a StitchableNet, the last stitch may run other modules
                stitch = None if name in found else self._stitch_with(name)
                if stitch is not None:
                    found |= inputs_of(self.network, [name], self.args[:1], {'stitch': stitch})
        found = {name: x for name, x in found.items() if bool(x.isfinite().all())}
        for name in names:
            if name not in found:
                _log.warning('%s is not calibrated: nothing finite reached it from the last input in train mode', name)
        return found

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training:
            self.args, self.kwargs = args, kwargs

    def _stitch_with(self, name: str) -> int | None:
        net: Any = self.network
        stitches = range(len(getattr(net, 'stitches', ())))
        return next((stitch for stitch in stitches if f'{name}.weight' in net.parameter_names(stitch)), None)


def inputs_of(
    network: nn.Module, names: Iterable[str], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """What flows into some modules in one pass, as maps (N, in, H, W).

    BatchNorms run in the mode that they are in and everything else in eval mode, so that no random number is drawn;
    running statistics stay as they are.
    """
    found: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def note(module: nn.Module, args: Any, name: str = name) -> None:
            found.setdefault(name, as_map(module, args[0].detach()))

        handles.append(network.get_submodule(name).register_forward_pre_hook(note))
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
