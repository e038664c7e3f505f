"""A GPU that is not there: tensors that say they are on one, keep their numbers on the CPU, and are as strict.

Operations on tensors of different devices fail as on CUDA, and so does what a capture of a CUDA graph forbids. Graphs
are recorded operation by operation and replayed into the same memory. It shows that code meant for a GPU keeps its
tensors in one place and calls torch.cuda as torch.cuda wants to be called. It shows nothing about kernels or speed.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed as dist

from tests.helpers.pretend_cuda import (
    CUDAGraph,
    Event,
    PretendGenerator,
    Stream,
    checked,
    graph,
    on_stream,
    pool_handle,
    refuse_while_capturing,
    streams,
)
from tests.helpers.pretend_tensor import Capture, Making, log

__all__ = ['log', 'pretended_gpu']


class _Autocast(torch.autocast):
    """Mixed precision on the pretended device, whose tensors torch takes for the CPU's."""

    def __init__(self, device_type: str, dtype: Any = None, **others: Any) -> None:
        super().__init__('cpu' if device_type == 'cuda' else device_type, dtype, **others)


def _of_host(ask: Any) -> Any:
    return lambda kind='cuda': ask('cpu' if kind == 'cuda' else kind)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Within it torch has a GPU, as far as this module goes."""
    card = types.SimpleNamespace(
        name='Pretended H100', total_memory=80 << 30, major=9, minor=0, multi_processor_count=132
    )
    bytes_held = iter(range(1 << 20, 1 << 60, 4096))

    def one_device(answer: Any) -> Any:
        return lambda device=None: (checked(device), answer)[1]

    def waiting(device: Any = None) -> None:
        checked(device)
        refuse_while_capturing('synchronize')

    cuda = {
        'is_available': lambda: True, 'device_count': lambda: 1, 'current_device': lambda: 0,
        'synchronize': waiting, 'empty_cache': lambda: None, 'is_bf16_supported': lambda *_, **__: True,
        'memory_allocated': one_device(1 << 20),
        'max_memory_allocated': lambda d=None: (checked(d), next(bytes_held))[1],
        'reset_peak_memory_stats': one_device(None), 'get_device_name': one_device(card.name),
        'get_device_properties': one_device(card), 'get_device_capability': one_device((9, 0)),
        'set_device': one_device(None), 'manual_seed_all': lambda seed: None, 'manual_seed': lambda seed: None,
        'get_rng_state': lambda device='cuda': torch.get_rng_state(),
        'set_rng_state': lambda state, device='cuda': None,
        'Stream': Stream, 'Event': Event, 'CUDAGraph': CUDAGraph, 'graph': graph, 'stream': on_stream,
        'graph_pool_handle': pool_handle, 'current_stream': lambda d=None: (checked(d), streams[-1])[1],
        'is_current_stream_capturing': lambda: Capture.current is not None, '_is_in_bad_fork': lambda: False,
        '_exchange_device': lambda index: 0, '_maybe_exchange_device': lambda index: 0,
        'is_initialized': lambda: True, 'init': lambda: None, '_lazy_init': lambda: None,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cuda.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.accelerator, 'synchronize', waiting)
        patch.setattr(torch.accelerator, 'current_stream', cuda['current_stream'])
        patch.setattr(torch, 'Generator', PretendGenerator)
        join = dist.init_process_group
        patch.setattr(dist, 'init_process_group', lambda backend, *args, **others: join('gloo', *args, **others))
        patch.setattr(Tensor, 'pin_memory', lambda tensor, device=None: tensor)
        patch.setattr(torch, 'autocast', _Autocast)
        patch.setattr(torch, 'is_autocast_enabled', _of_host(torch.is_autocast_enabled))
        patch.setattr(torch, 'get_autocast_dtype', _of_host(torch.get_autocast_dtype))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with Making():
                yield torch.device('cuda')
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)
