"""Memory that a stitch needs by itself: its own tensors, and the most that a call allocates."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import torch
from torch.autograd import profiler

from ..anchors.anchor import Anchor
from ..net.stitchable_net import StitchableNet


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes that a call holds at once of what torch allocates in it, its result among them.

    On the CPU from the events of torch's allocator, so that the same call gives the same number; scratch memory that
    kernels of other libraries allocate by themselves is not seen.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler's library would write to the terminal
    with profiler.profile(profile_memory=True) as profiled:
        call()
    events = [event for event in profiled.kineto_results.events() if event.name() == '[memory]']
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def own_bytes(net: StitchableNet) -> Callable[[int], int]:
    """What gives the bytes of the parameters and buffers that a stitch uses, by id."""
    sizes = {name: tensor.nbytes for name, tensor in net.named_parameters()}
    buffers = [list(_buffers(net.anchor(i))) for i in range(len(net.anchors))]
    index = {net.anchor(i).name: i for i in range(len(net.anchors))}

    def own(stitch: int) -> int:
        used: dict[object, int] = {name: sizes[name] for name in net.parameter_names(stitch)}
        for leg in net.stitches[stitch].legs:
            needed = net.anchor(leg.anchor).parameter_names(leg.start, leg.stop)
            places = range(10**9)[leg.start : leg.stop]
            for name, place, owners, size in buffers[index[leg.anchor]]:
                if place in places if place is not None else not owners or owners & needed:
                    used[leg.anchor, name] = size
        return sum(used.values())

    return own


def _buffers(anchor: Anchor) -> Iterator[tuple[str, int | None, set[str], int]]:
    """Buffers: name, the module of the line that holds it (None in stem and head), its owner's parameters, bytes."""
    inside = {id(m): place for place, block in enumerate(anchor.line()) for m in block.modules()}
    for name, buffer in anchor.model.named_buffers():
        path = name.rpartition('.')[0]
        owner = anchor.model.get_submodule(path)
        parameters = {f'{path}.{p}'.lstrip('.') for p, _ in owner.named_parameters()}
        yield name, inside.get(id(owner)), parameters, buffer.nbytes
