"""BatchNorm statistics of every stitch, exact over some images and measured once where stitches share a path."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SnnetError
from ..net.batchnorm import (
    Statistics,
    Table,
    attach,
    batch_norms,
    detach,
    normalizing_with,
)
from ..net.part_tree import PartNode, build_part_tree, function_of
from ..net.stitchable_net import StitchableNet

_log = logging.getLogger(__name__)
_CHUNK = 32
"""Images that run at a time: what a part needs besides its input and output does not grow with the samples."""


def recalibrate(
    net: StitchableNet,
    batches: Iterable[Tensor | Sequence[Any]],
    samples: int = 1000,
    stitches: Sequence[int] | None = None,
    progress: Callable[[int, int], object] | None = None,
    all_reduce: Callable[[Tensor], object] | None = None,
) -> None:
    """Gives every stitch BatchNorm statistics of its own, and puts the net into eval mode.

    An anchor's running statistics are a mixture of all stitches after joint training, and before it they are those of
    the anchor alone; neither is what flows through a stitch. Here each BatchNorm gets the exact mean and unbiased
    variance of its inputs over all images, while the BatchNorms before it normalize with their new statistics: what a
    stitch sees in eval mode, and the same however the images are split into batches and over ranks (but for rounding).
    That takes a run of a part for each of its BatchNorms and one for its output; a place in the tree of parts is
    measured once for all stitches that pass it.

    The statistics are used in eval mode by `net(x)`, `net(x, stitch=i)`, evaluation and `extract`, and are saved with
    the net. They belong to these weights: train mode, `load_state_dict` and any other change of a parameter in place
    take them away, with a warning. No other thread may run the net meanwhile.

    Args:
        net: a net with BatchNorm in its anchors.
        batches: training images (n, C, H, W), or pairs whose first item they are, augmented as when the weights were
            trained: BatchNorm normalizes what it sees now by what it saw then, and clean images cost points.
        samples: how many images to use; fewer are used, with a warning, where there are fewer. Memory holds the
            features of all of them at three positions or so (4 GB for 1,000 images of 224 pixels in a ResNet-50).
        stitches: ids; all by default. Others run with the statistics of the anchors.
        progress: is told images that went through a part, and of how many in all.
        all_reduce: adds a tensor up over ranks in place; `samples` then counts the images of this rank.

    Raises:
        SnnetError: no BatchNorm, no images, or features that are not finite.
        UnknownStitch: no such id.
    """
    if not batch_norms(net):
        raise SnnetError(f'there is nothing to recalibrate: no anchor of {net.title} has BatchNorm')
    if samples < 1:
        raise SnnetError(f'at least one image is needed to recalibrate, samples={samples} was asked for')
    ids = sorted({net.checked(stitch) for stitch in (range(len(net.stitches)) if stitches is None else stitches)})
    net.eval()
    net.set_statistics(None)
    with torch.inference_mode(False), torch.no_grad():
        chunks = _collect(net, batches, samples)
        device = next(net.parameters()).device
        # the first number is positive where a rank has nothing to do, which would leave the others waiting
        counts = torch.tensor([not chunks, sum(map(len, chunks))], dtype=torch.float64, device=device)
        if all_reduce is not None:
            all_reduce(counts)
        if counts[0] > 0:
            raise SnnetError('no images to recalibrate BatchNorm with' + (' on some process' if all_reduce else ''))
        if all_reduce is None and counts[1] < samples:
            _log.warning('recalibrating with %d images, for there are no more (%d were asked for)', counts[1], samples)
        values = _Measurement(net, all_reduce, progress).run(build_part_tree(net, ids), chunks)
    net.set_statistics(Statistics(net, values, ids, int(counts[1])))


def _collect(net: StitchableNet, batches: Iterable[Any], samples: int) -> list[Tensor]:
    """The images, in chunks on the net's device."""
    weight = next(net.parameters())
    chunks: list[Tensor] = []
    left = samples
    for batch in batches:
        images = (batch if isinstance(batch, Tensor) else batch[0])[:left].to(weight.device, weight.dtype)
        chunks += images.split(_CHUNK) if len(images) else ()
        left -= len(images)
        if left == 0:
            break
    return chunks


class _Reached(Exception):
    """A run came to a BatchNorm whose statistics are not known yet."""


class _Measurement:
    """One walk through the tree.

    Attributes:
        values: what was found, by place (see `Statistics`).
        sums: count, sums and sums of squares of the inputs of the BatchNorm that is measured now.
    """

    def __init__(
        self,
        net: StitchableNet,
        all_reduce: Callable[[Tensor], object] | None,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self.net, self.all_reduce, self.progress = net, all_reduce, progress
        self.names = {module: name for name, module in batch_norms(net).items()}
        self.values: dict[str, Tensor] = {}
        self.known: Table = {}
        self.measured: nn.Module | None = None
        self.sums: Tensor | None = None

    def run(self, tree: PartNode, chunks: list[Tensor]) -> dict[str, Tensor]:
        """Measures every place of a tree."""
        self.total = sum(map(len, chunks)) * sum(1 for _ in tree.walk())
        with ExitStack() as hooks:
            attach(self.names)
            hooks.callback(detach, self.net)
            for module in self.names:
                hooks.callback(module.register_forward_pre_hook(self._look).remove)
            self._visit(tree, chunks, {})
        return self.values

    def _visit(self, node: PartNode, chunks: list[Tensor], known: Table) -> None:
        """Measures what follows a node; its features are given up one by one while the last of that runs.

        Stitch layers come first, so that the features along a front are held at one position only.
        """
        following = sorted(node.then.values(), key=lambda child: child.part is not None and child.part.kind != 'layer')
        for child in following:
            table = dict(known) if child.leg == node.leg else {}
            outputs = self._measure(child, chunks, table, give_up=child is following[-1])
            self._visit(child, outputs, table)

    def _measure(self, node: PartNode, chunks: list[Tensor], table: Table, give_up: bool) -> list[Tensor]:
        """Runs a part until all its BatchNorms are known, adds them to the table, and returns its outputs."""
        assert node.part is not None  # only the root has none
        part = function_of(self.net, node.part)
        outputs: list[Tensor] = []
        while not outputs:
            self.known, self.measured, self.sums = table, None, None
            for i, chunk in enumerate(chunks):
                try:
                    with normalizing_with(table):
                        outputs.append(part(chunk))
                except _Reached:
                    self._tell(0)
                    continue
                self._tell(len(chunk))
                if give_up:
                    chunks[i] = chunk.new_empty(0)
            if self.measured is not None:
                table[self.measured] = self._conclude(node)
        return outputs

    def _look(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Before a BatchNorm runs: where its statistics are not known, adds up its inputs and ends the run."""
        if module in self.known:
            return
        x = inputs[0].double()
        places = [0, *range(2, x.ndim)]
        count = x.new_tensor([x.numel() // x.shape[1]])
        sums = torch.cat([count, x.sum(places), x.square().sum(places)])
        self.measured, self.sums = module, sums if self.sums is None else self.sums + sums
        raise _Reached

    def _conclude(self, node: PartNode) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance, as BatchNorm keeps them, of the inputs seen by all ranks."""
        assert self.measured is not None
        assert self.sums is not None
        if self.all_reduce is not None:
            self.all_reduce(self.sums)
        name, count = self.names[self.measured], self.sums[0]
        total, squares = self.sums[1:].chunk(2)
        mean = total / count
        variance = ((squares - total * mean) / (count - 1)).clamp(min=0)
        if not bool(mean.isfinite().all() and variance.isfinite().all()):
            raise SnnetError(
                f'{name} gets features that are not finite, or only one image of one cell, in stitch {node.owner} '
                f'({self.net.stitches[node.owner]}): check weights and images'
            )
        value = torch.stack([mean, variance]).to(self.measured.get_buffer('running_mean').dtype)
        self.values[f'{node.owner}.{node.depth}.{name}'] = value
        return value[0], value[1]

    def _tell(self, images: int) -> None:
        if self.progress is not None:
            self.progress(images, self.total)
