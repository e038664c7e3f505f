from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from snnet.reassembly.published_flops import PublishedCounter

X = torch.zeros(1, 4, 8, 8)


def weight(*shape):
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ('run', 'flops'),
    [
        (lambda: F.conv2d(X, weight(6, 4, 3, 3), stride=2), 6 * 9 * 36),
        (lambda: F.conv2d(X, weight(6, 4, 3, 3), None, 2), 6 * 9 * 36),
        (lambda: F.conv2d(X, weight(6, 4, 3, 3), weight(6), 2), 6 * 9 * 37),
        (lambda: F.conv2d(X, weight(6, 4, 3, 3), stride=2, bias=weight(6)), 6 * 9 * 37),
        (lambda: F.conv2d(input=X, weight=weight(6, 4, 3, 3), padding=1), 6 * 64 * 36),
        (lambda: F.conv2d(X, weight(6, 2, 3, 3), groups=2), 6 * 36 * 18),
        (lambda: F.conv1d(X[0], weight(5, 8, 3), stride=1), 4 * 5 * 6 * 24),
        (lambda: F.conv_transpose2d(X, weight(4, 6, 2, 2), stride=2), 4 * 64 * 24),
        (lambda: F.linear(X, weight(3, 8)), 4 * 8 * 3 * 8),
        (lambda: F.linear(input=X, weight=weight(3, 8), bias=weight(3)), 4 * 8 * 3 * 8),
        (lambda: torch.matmul(X, X), 0),
        (lambda: F.relu(input=X), 256),
        (lambda: F.max_pool2d(input=X, kernel_size=2), 256),
        (lambda: F.layer_norm(X, (8,)), 512),
        (lambda: nn.BatchNorm2d(4).eval()(X), 512),
    ],
)
def test_functions_are_counted_however_they_are_called(run, flops):
    with torch.no_grad(), PublishedCounter() as counter:
        run()
    assert counter.total == flops
