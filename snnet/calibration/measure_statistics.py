"""Measures exact BatchNorm statistics at every place in a tree of parts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ..errors import SnnetError
from ..net.part_tree import PartNode, function_of
from ..net.stitch_statistics import batch_norms
from ..net.stitch_tensors import Table, attach, computing_with, detach
from ..net.stitchable_net import StitchableNet


class _NextBatchNorm(Exception):
    """A run has reached a BatchNorm whose statistics are not known yet."""


class StatisticsMeter:
    """Measures the statistics of every BatchNorm in a tree of parts, in one walk.

    A part runs once for each of its BatchNorms and once more for its output: while the inputs of a BatchNorm are
    summed, those before it normalize with their new statistics already.

    Args:
        net: in eval mode, without statistics of stitches.
        all_reduce: sums a tensor over ranks in place.
        progress: called with the number of images that went through a part.

    Attributes:
        values: mean and variance (2, channels), by place (see `Statistics`).
    """

    def __init__(
        self,
        net: StitchableNet,
        all_reduce: Callable[[Tensor], object] | None,
        progress: Callable[[int], object],
    ) -> None:
        self.net, self.all_reduce, self.progress = net, all_reduce, progress
        self.values: dict[str, Tensor] = {}
        self._names = {module: name for name, module in batch_norms(net).items()}
        self._known = Table()
        self._measured: nn.Module | None = None
        self._sums: Tensor | None = None  # count, sums and sums of squares of the inputs of the measured BatchNorm

    def measure(self, tree: PartNode, chunks: list[Tensor]) -> dict[str, Tensor]:
        """Measures every place of a tree on images in chunks; the list of chunks is emptied to save memory."""
        with ExitStack() as hooks:
            attach(self._names)
            hooks.callback(detach, self.net)
            for module in self._names:
                hooks.callback(module.register_forward_pre_hook(self._look).remove)
            self._visit(tree, chunks, Table())
        return self.values

    def _visit(self, node: PartNode, chunks: list[Tensor], known: Table) -> None:
        """Measures what follows a node; its features are freed one by one while the last child runs.

        Stitch layers come first, so that the features along a front are held at one position only.
        """
        following = sorted(node.then.values(), key=lambda child: child.part is not None and child.part.kind != 'layer')
        for child in following:
            table = Table(known if child.leg == node.leg else {})
            outputs = self._run_part(child, chunks, table, give_up=child is following[-1])
            self._visit(child, outputs, table)

    def _run_part(self, node: PartNode, chunks: list[Tensor], table: Table, give_up: bool) -> list[Tensor]:
        """Runs a part until all its BatchNorms are known, adds them to the table, and returns its outputs."""
        assert node.part is not None  # only the root has none
        part = function_of(self.net, node.part)
        outputs: list[Tensor] = []
        while not outputs:
            self._known, self._measured, self._sums = table, None, None
            for i, chunk in enumerate(chunks):
                try:
                    with computing_with(table):
                        outputs.append(part(chunk))
                except _NextBatchNorm:
                    continue
                self.progress(len(chunk))
                if give_up:
                    chunks[i] = chunk.new_empty(0)
            if self._measured is not None:
                table[self._measured] = self._conclude(node)
        return outputs

    def _look(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Runs before a BatchNorm: if its statistics are not known, sums its inputs and ends the run."""
        if module in self._known:
            return
        x = inputs[0].double()  # (n, channels, ...)
        axes = [0, *range(2, x.ndim)]
        count = x.new_tensor([x.numel() // x.shape[1]])
        sums = torch.cat([count, x.sum(axes), x.square().sum(axes)])  # (1 + 2 channels,)
        self._measured, self._sums = module, sums if self._sums is None else self._sums + sums
        raise _NextBatchNorm

    def _conclude(self, node: PartNode) -> dict[str, Tensor]:
        """Mean and unbiased variance, as BatchNorm keeps them, of the inputs seen by all ranks."""
        assert self._measured is not None
        assert self._sums is not None
        if self.all_reduce is not None:
            self.all_reduce(self._sums)
        name, count = self._names[self._measured], self._sums[0]
        total, squares = self._sums[1:].chunk(2)
        mean = total / count
        variance = ((squares - total * mean) / (count - 1)).clamp(min=0)
        if not bool(mean.isfinite().all() and variance.isfinite().all()):
            raise SnnetError(
                f'{name} gets features that are not finite, or only one image of one cell, in stitch {node.owner} '
                f'({self.net.stitches[node.owner]}): check weights and images'
            )
        value = torch.stack([mean, variance]).to(self._measured.get_buffer('running_mean').dtype)
        self.values[f'{node.owner}.{node.depth}.{name}'] = value
        return {'running_mean': value[0], 'running_var': value[1]}
