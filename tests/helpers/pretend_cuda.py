"""Streams, events, graphs and generators of a GPU that is not there, which check how they are used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from tests.helpers.pretend_tensor import CUDA, Capture


class PretendGenerator(torch._C.Generator):
    """A generator of the pretended device; a CPU generator draws."""

    device = CUDA  # type: ignore[assignment]

    def __new__(cls, device: Any = 'cpu') -> Any:
        return torch._C.Generator() if torch.device(device).type == 'cpu' else super().__new__(cls)

    def __init__(self, device: Any = 'cpu') -> None:
        pass


class Stream:
    """A stream; here all work is done at once, so it only checks how it is used."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device = CUDA if device is None else torch.device(device)

    def wait_stream(self, stream: Stream) -> None:
        assert isinstance(stream, Stream)

    def wait_event(self, event: Event) -> None:
        assert isinstance(event, Event)
        assert event.recorded, 'waits for an event that was never recorded'

    def is_capturing(self) -> bool:
        return Capture.current is not None

    def synchronize(self) -> None:
        refuse_while_capturing('synchronize')


class Event:
    """A mark in a stream."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.recorded = False

    def record(self, stream: Stream | None = None) -> None:
        assert stream is None or isinstance(stream, Stream)
        self.recorded = True


class CUDAGraph:
    """A graph that is captured once and replayed as often as one likes."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.capture: Capture | None = None

    def replay(self) -> None:
        assert self.capture is not None, 'replays a graph that was not captured'
        refuse_while_capturing('replay')
        self.capture.replay()


streams = [Stream()]


@contextlib.contextmanager
def on_stream(stream: Stream | None) -> Iterator[None]:
    if stream is None:
        yield
        return
    streams.append(stream)
    try:
        yield
    finally:
        streams.pop()


@contextlib.contextmanager
def graph(
    cuda_graph: CUDAGraph, pool: Any = None, stream: Stream | None = None, capture_error_mode: str = 'global'
) -> Iterator[None]:
    assert Capture.current is None, 'a capture within a capture'
    assert pool is None or pool in _pools
    with on_stream(stream or Stream()):
        cuda_graph.capture = Capture.current = Capture()
        try:
            yield
        finally:
            Capture.current = None


_pools: list[tuple[int, int]] = []


def pool_handle() -> tuple[int, int]:
    _pools.append((0, len(_pools) + 1))
    return _pools[-1]


def refuse_while_capturing(what: str) -> None:
    if Capture.current is not None:
        raise RuntimeError(f'operation not permitted when stream is capturing: {what}')


def checked(device: Any = None) -> int:
    if device is None or isinstance(device, int):
        return device or 0
    named = torch.device(device)
    if named.type != 'cuda':
        raise ValueError(f'Expected a cuda device, but got: {device}')
    return named.index or 0
