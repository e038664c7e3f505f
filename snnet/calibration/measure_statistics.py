"""Measures exact BatchNorm statistics at every place in a tree of parts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ..errors import SnnetError
from ..net.part_tree import PartNode, StitchPart, function_of
from ..net.stitch_statistics import batch_norms
from ..net.stitch_tensors import Table, attach, computing_with, detach
from ..net.stitchable_net import StitchableNet

_AT_ONCE = 1 << 30
"""Bytes that the features within a part may take where all images run together."""
_LIVE = 4
"""How many features as large as the largest input of a BatchNorm live within a part at a time, about."""
_CHUNK = 32
"""Images that run at a time elsewhere, and whose features are summed in float64 at a time."""


class _NextBatchNorm(Exception):
    """A run has reached a BatchNorm whose statistics are not known yet."""


class StatisticsMeter:
    """Measures the statistics of every BatchNorm in a tree of parts, in one walk.

    While the inputs of a BatchNorm are summed, those before it normalize with their new statistics already. A part runs
    once, on all images together. Where its features are too large for that, it runs on chunks of the images: once for
    each of its BatchNorms, and once more for its output.

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
        self._together: PartNode | None = None  # the node whose part runs on all images, so that sums are complete
        self._needs: dict[tuple[StitchPart, torch.Size], int] = {}  # bytes per image of the features within a part
        self._largest: int | None = None  # of the inputs of BatchNorms, while one image shows what a part needs
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
        if sum(map(len, chunks)) * self._bytes_per_image(node.part, part, chunks) > _AT_ONCE:
            return self._run_in_chunks(node, part, chunks, table, give_up)
        images = torch.cat(chunks) if len(chunks) > 1 else chunks[0]
        if give_up:
            chunks.clear()
        self._known, self._together = table, node
        with computing_with(table):
            output = part(images)
        self._together = None
        self.progress(len(images))
        return [output]

    def _bytes_per_image(self, key: StitchPart, part: Callable[[Tensor], Tensor], chunks: list[Tensor]) -> int:
        """About the bytes per image of the features that live within a part, as one image shows."""
        if len({chunk.shape[1:] for chunk in chunks}) > 1:
            return _AT_ONCE + 1  # images of several sizes do not run together
        shape = chunks[0].shape[1:]
        if (key, shape) not in self._needs:
            self._largest = 0
            part(chunks[0][:1])
            self._needs[key, shape], self._largest = _LIVE * self._largest, None
        return self._needs[key, shape]

    def _run_in_chunks(
        self, node: PartNode, part: Callable[[Tensor], Tensor], chunks: list[Tensor], table: Table, give_up: bool
    ) -> list[Tensor]:
        chunks[:] = [piece for chunk in chunks for piece in torch.split(chunk, _CHUNK)]
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
            if self._measured is not None and self._sums is not None:
                table[self._measured] = self._conclude(node, self._measured, self._sums)
        return outputs

    def _look(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Runs before a BatchNorm: if its statistics are not known, sums its inputs.

        If these are not of all images, the run ends here.
        """
        x = inputs[0]  # (n, channels, ...)
        if self._largest is not None:
            self._largest = max(self._largest, x.nbytes)
            return
        if module in self._known:
            return
        sums = _sums(x)
        if self._together is not None:
            self._known[module] = self._conclude(self._together, module, sums)
            return
        self._measured, self._sums = module, sums if self._sums is None else self._sums + sums
        raise _NextBatchNorm

    def _conclude(self, node: PartNode, module: nn.Module, sums: Tensor) -> dict[str, Tensor]:
        """Mean and unbiased variance, as BatchNorm keeps them, of the inputs seen by all ranks."""
        if self.all_reduce is not None:
            self.all_reduce(sums)
        name, count = self._names[module], sums[0]
        total, squares = sums[1:].chunk(2)
        mean = total / count
        variance = ((squares - total * mean) / (count - 1)).clamp(min=0)
        if not bool(mean.isfinite().all() and variance.isfinite().all()):
            raise SnnetError(
                f'{name} gets features that are not finite, or only one image of one cell, in stitch {node.owner} '
                f'({self.net.stitches[node.owner]}): check weights and images'
            )
        value = torch.stack([mean, variance]).to(module.get_buffer('running_mean').dtype)
        self.values[f'{node.owner}.{node.depth}.{name}'] = value
        return {'running_mean': value[0], 'running_var': value[1]}


def _sums(x: Tensor) -> Tensor:
    """Count, sums and sums of squares per channel of features (n, channels, ...): (1 + 2 channels,), float64."""
    axes, count = [0, *range(2, x.ndim)], x.new_tensor([x.numel() // x.shape[1]], dtype=torch.float64)
    if x.device.type == 'cpu' and x.dtype == torch.float32:
        mean, variance = (found.double() for found in torch.batch_norm_update_stats(x, None, None, 0.0))
        return torch.cat([count, count * mean, count * (variance + mean.square())])
    x = x.double()
    return torch.cat([count, x.sum(axes), x.square().sum(axes)])
