"""CUDA graphs of stitches: a call replays everything that a stitch launches, without Python between the kernels."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import SnnetError, UnknownStitch
from ..utils.progress import Progress
from .stitchable_net import StitchableNet

_WARM_UP = 3
"""Calls before a capture: libraries allocate workspaces and choose kernels in the first ones."""


class GraphedStitches:
    """Stitches of a net on a GPU as CUDA graphs for batches of up to N images; they may run in any order.

    The graphs share their memory, so together they need as much as the largest one. They run one at a time, however
    many threads call them. Weights that change in place take effect; after `net.to`, `net.train` or a replaced block,
    capture again. Under `torch.autocast`, the graphs keep the precision of their capture.

    Args:
        net: in eval mode, on a GPU, in inference use (no gradients).
        images: (N, C, H, W), with the type and memory format of later batches, as many as the largest of them has.
        stitches: ids to capture; all by default.
        quiet: show no progress.

    Raises:
        SnnetError: the net is not on a GPU or in train mode.
        UnknownStitch: no such id.
    """

    def __init__(
        self, net: StitchableNet, images: Tensor, stitches: Iterable[int] | None = None, quiet: bool = False
    ) -> None:
        device = next(net.parameters()).device
        if device.type != 'cuda' or net.training:
            mode = 'train' if net.training else 'eval'
            raise SnnetError(f'CUDA graphs need a net on a GPU in eval mode, but this is on {device} in {mode} mode')
        ids = [net.checked(i) for i in (range(len(net.stitches)) if stitches is None else stitches)]
        self.net = net
        self._device = device
        self._images = images.to(device, copy=True)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._lock = threading.Lock()
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch does not annotate it
            progress = Progress(len(ids), 'stitches captured', quiet=quiet)
            for i in ids:
                self._graphs[i] = self._capture(i)
                progress.update(1)
            progress.close()
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch does not annotate it
            self._done.record()

    @torch.inference_mode()
    def __call__(self, x: Tensor, stitch: int | None = None) -> Tensor:
        """Images (n, C, H, W), n <= N, to logits (n, classes) in new memory.

        Raises:
            UnknownStitch: the stitch was not captured.
            SnnetError: more images than were captured for, or of another shape or type.
        """
        index = self.net.active if stitch is None else self.net.checked(stitch)
        if index not in self._graphs:
            raise UnknownStitch(f'stitch {index} was not captured, only {", ".join(map(str, self._graphs))}')
        count = len(x)
        if count > len(self._images) or x.shape[1:] != self._images.shape[1:] or x.dtype != self._images.dtype:
            raise SnnetError(
                f'captured for up to {tuple(self._images.shape)} {self._images.dtype}, got {tuple(x.shape)} {x.dtype}'
            )
        graph, logits = self._graphs[index]
        with self._lock:  # the graphs share memory: each call waits for the one before, on whatever stream that ran
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._done)
            self._images[:count].copy_(x)
            graph.replay()
            own = logits[:count].clone()
            self._done.record(stream)
        return own

    @torch.inference_mode()
    def _capture(self, stitch: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            for _ in range(_WARM_UP):
                self.net(self._images, stitch=stitch)
        torch.cuda.current_stream().wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        # always the same stream: torch's own belongs to the GPU of the first capture of the process
        with torch.cuda.graph(graph, pool=self._pool, stream=self._aside):
            logits = self.net(self._images, stitch=stitch)
        return graph, logits
