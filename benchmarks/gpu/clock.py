"""Times of calls on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from snnet.profiling.stopwatch import synchronize

Call = Callable[[], object]


def milliseconds(call: Call, device: torch.device, seconds: float = 0.5, least: int = 3) -> float:
    """Median time of single calls, each waited for: what a request takes."""
    for _ in range(2):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        synchronize(device)
        begin = time.perf_counter()
        call()
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def per_second(call: Call, device: torch.device, images: int, seconds: float = 0.5, least: int = 3) -> float:
    """Images per second of calls one behind the other, without waiting in between: what a device can do."""
    for _ in range(2):
        call()
    synchronize(device)
    begin = time.perf_counter()
    call()
    synchronize(device)
    count = max(least, round(seconds / max(time.perf_counter() - begin, 1e-6)))
    begin = time.perf_counter()
    for _ in range(count):
        call()
    synchronize(device)
    return images * count / (time.perf_counter() - begin)


def took(call: Call, device: torch.device) -> float:
    """Seconds of one call with all its work on the device."""
    synchronize(device)
    begin = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - begin


def peak_gigabytes(device: torch.device) -> float | str:
    """Most memory that torch held on a GPU since `forget_peak`; a dash on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == 'cuda' else '-'


def forget_peak(device: torch.device) -> None:
    """Begins a new measurement of memory."""
    if device.type == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def matrix_peak(device: torch.device, size: int) -> float:
    """Multiply-adds per second of a square bfloat16 matrix product on random data: the card's limit in practice."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    products = per_second(lambda: a @ b, device, 1, 0.3)
    return products * size**3
