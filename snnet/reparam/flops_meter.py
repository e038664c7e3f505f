"""Multiply-adds of a network that grows, from the shapes that its convolutions and linear layers have seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..stitching.stitch_layer import StitchLayer
from .block import is_block
from .kernel_window import KernelWindow
from .local_hook import LocalHook
from .rep_layers import kinds_of, window_of


class FlopsMeter:
    """Notes the shape of the first input of every convolution and linear layer; stitch layers know their own.

    Args:
        network: the network to measure; each of these modules counts once, however many stitches run it.

    Attributes:
        grids: rows and columns of the input by name of the module; the places of a linear layer are one column.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.grids: dict[str, tuple[int, int]] = {}
        self._handles = {}
        for name, module in network.named_modules():
            if isinstance(module, StitchLayer):
                front = module.front
                self.grids[name] = (front.tokens, 1) if front.layout == 'NLC' else front.grid
            elif isinstance(module, nn.Conv2d | nn.Linear):
                hook = LocalHook(partial(self._note, name))
                self._handles[name] = module.register_forward_pre_hook(hook)

    def stop(self) -> None:
        """Takes no more notes."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def total(self) -> int:
        """Multiply-adds per image of everything seen, with all branches."""
        modules = dict(self.network.named_modules())
        return sum(self._flops(modules[name], grid) for name, grid in self.grids.items())

    def extra(self, name: str, kinds: Iterable[str]) -> int:
        """Multiply-adds per image that branches of these kinds would add to a module."""
        module = self.network.get_submodule(name)
        window, table = window_of(module), kinds_of(module)
        with torch.device('meta'):
            branches = [table[kind](window) for kind in kinds]
        grid = self.grids[name]
        return sum(branch.flops(grid, _out(window, grid)) for branch in branches)

    def state(self) -> dict[str, list[int]]:
        """What was noted, fit for JSON."""
        return {name: list(grid) for name, grid in self.grids.items()}

    def load(self, state: Mapping[str, Iterable[int]]) -> None:
        """Continues from what `state` gave."""
        for name, (rows, columns) in state.items():
            self.grids[name] = rows, columns
            self._unhook(name)

    def _note(self, name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Linear):
            self.grids[name] = math.prod(args[0].shape[1:-1]), 1
        else:
            rows, columns = args[0].shape[-2:]
            self.grids[name] = rows, columns
        self._unhook(name)

    def _unhook(self, name: str) -> None:
        if name in self._handles:
            self._handles.pop(name).remove()

    def _flops(self, module: Any, grid: tuple[int, int]) -> int:
        window = window_of(module)
        total = window.flops(window.channels[1], window.kernel, _out(window, grid))
        branches = module.branch_of.values() if is_block(module) else ()
        return total + sum(branch.flops(grid, _out(window, grid)) for branch in branches)


def _out(window: KernelWindow, grid: tuple[int, int]) -> tuple[int, int]:
    return window.out_grid(torch.Size(grid))
