"""Requests leave nothing that only the garbage collector frees: it hardly ever runs, and keeps each body until then."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from urllib.parse import urlsplit

import numpy as np
import pytest

from snnet.serve.http import shared_state
from snnet.serve.service.refusal import Refusal
from tests.helpers.served import live, npy, tiny_net

REQUESTS = 20
FAILS, IS_LOST, HANGS = 1, 2, 3
"""Stitches that do not answer, each in a way of its own."""
released = threading.Event()
Ask = Callable[..., int]


@pytest.fixture(scope='module')
def ask() -> Iterator[Ask]:
    """Sends a request; its status."""
    served = tiny_net()
    run = served.run

    def runs(images, stitch):
        if stitch == FAILS:
            raise RuntimeError('an operation failed')
        if stitch == IS_LOST:
            raise Refusal('worker_lost', 'the process ended', 0.0)
        if stitch == HANGS:
            released.wait(1.5)
        return run(images, stitch)

    def ask(query: str = '', images: int = 1) -> int:
        body = npy(np.zeros((images, *served.input_size), np.float32))
        connection = HTTPConnection(urlsplit(url).netloc, timeout=20)
        connection.request('POST', f'/v1/predict?{query}', body, {'Content-Type': 'application/x-npy'})
        reply = connection.getresponse()
        reply.read()
        connection.close()
        return reply.status

    served.run = runs
    with live(served) as url:
        yield ask


@contextmanager
def few_cycles() -> Iterator[None]:
    """Checks that what happens here leaves fewer objects for the garbage collector than there are requests."""
    time.sleep(0.05)  # the end of a request before
    gc.collect()
    gc.disable()
    try:
        yield
        time.sleep(0.05)  # the end of the last one
        assert gc.collect() < REQUESTS
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ('query', 'images', 'status'),
    [
        ('', 1, 200),
        ('', 3, 200),
        ('top=0', 1, 422),
        ('deadline_ms=0.9', 1, 429),
        (f'stitch={FAILS}', 1, 500),
        (f'stitch={FAILS}', 3, 500),
        (f'stitch={IS_LOST}', 1, 503),
    ],
)
def test_a_request_leaves_no_reference_cycle(ask, query, images, status):
    ask(query, images)
    with few_cycles():
        assert {ask(query, images) for _ in range(REQUESTS)} == {status}


def test_a_request_that_was_given_up_leaves_no_reference_cycle(ask, monkeypatch):
    monkeypatch.setattr(shared_state, 'GRACE', -1000.0)  # at once
    with few_cycles():
        assert {ask(f'stitch={HANGS}') for _ in range(REQUESTS)} == {503}
        released.set()
        monkeypatch.undo()
        assert ask() == 200  # after all that waited before it
