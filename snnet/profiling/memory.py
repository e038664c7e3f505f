"""Memory that a stitch needs: its own tensors, and the peak of what a call allocates."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import torch
from torch.autograd import profiler

from ..anchors.anchor import Anchor
from ..net.stitchable_net import StitchableNet


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Returns the peak bytes that torch allocates during a call, including its result.

    On a CPU, the bytes come from the events of torch's allocator, so equal calls give equal numbers. Scratch memory
    that other libraries allocate is not counted.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # keeps the profiler's library from writing to the terminal
    with profiler.profile(profile_memory=True) as profiled:
        call()
    events = [event for event in profiled.kineto_results.events() if event.name() == '[memory]']
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def own_bytes(net: StitchableNet) -> Callable[[int], int]:
    """Returns a function that gives the bytes of the parameters and buffers used by a stitch, by id."""
    sizes = {name: tensor.nbytes for name, tensor in net.named_parameters()}
    buffers = [list(_buffers(net.anchor(i))) for i in range(len(net.anchors))]
    index = {net.anchor(i).name: i for i in range(len(net.anchors))}
    lengths = {name: len(net.anchor(name).line()) for name in index}

    def own(stitch: int) -> int:
        used: dict[object, int] = {name: sizes[name] for name in net.parameter_names(stitch)}
        for leg in net.stitches[stitch].legs:
            needed = net.anchor(leg.anchor).parameter_names(leg.start, leg.stop)
            places = range(*slice(leg.start, leg.stop).indices(lengths[leg.anchor]))
            for name, place, owners, size in buffers[index[leg.anchor]]:
                if place in places if place is not None else not owners or owners & needed:
                    used[leg.anchor, name] = size
        return sum(used.values())

    return own


def _buffers(anchor: Anchor) -> Iterator[tuple[str, int | None, set[str], int]]:
    """Yields the name of each buffer, the position of its module (None in stem and head), its parameters and bytes."""
    inside = {id(m): place for place, block in enumerate(anchor.line()) for m in block.modules()}
    for name, buffer in anchor.model.named_buffers():
        path = name.rpartition('.')[0]
        owner = anchor.model.get_submodule(path)
        parameters = {f'{path}.{p}'.lstrip('.') for p, _ in owner.named_parameters()}
        yield name, inside.get(id(owner)), parameters, buffer.nbytes
