from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from tests.helpers.pretend_gpu import pretended_gpu

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # for deterministic products; read when CUDA starts


@pytest.fixture
def device(request) -> Iterator[torch.device]:
    """Where the tests of this folder run: a GPU, or what `--device` names."""
    named = request.config.getoption('--device')
    if named == 'pretended':
        with pretended_gpu() as there:
            yield there
        return
    if named != 'cpu' and not torch.cuda.is_available():
        pytest.skip('needs a GPU, or --device cpu')
    yield torch.device(named or 'cuda')


@pytest.fixture
def gpu(device) -> torch.device:
    """For what exists on a GPU only."""
    if device.type != 'cuda':
        pytest.skip('exists on a GPU only')
    return device


@pytest.fixture
def true_memory(request) -> None:
    """For what counts bytes of the device."""
    if request.config.getoption('--device') == 'pretended':
        pytest.skip('a pretended GPU has no memory')


@pytest.fixture(autouse=True)
def exact_products():
    """Products of float32 numbers in float32 (not in TF32), as on a CPU."""
    torch.set_float32_matmul_precision('highest')
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        yield
