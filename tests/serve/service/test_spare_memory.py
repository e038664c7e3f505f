from __future__ import annotations

import threading
import time

import pytest
import torch

from snnet.serve.service import service as service_module, spare_memory
from snnet.serve.service.demand import Demand
from tests.helpers.served import running, tiny_net

IMAGE = 100_000
"""Bytes: malloc takes this from its heap, and asks the system for larger pieces one by one."""


def held() -> int:
    """Bytes of this process, without the pages of files."""
    with open('/proc/self/status') as file:
        return next(1000 * int(line.split()[1]) for line in file if line.startswith('RssAnon'))


@pytest.mark.skipif(spare_memory._trim() is None, reason='this C library has no malloc_trim')
def test_memory_between_objects_that_stay_is_given_back():
    crowd = [b'\1' * IMAGE for _ in range(1000)]
    stay = crowd[::20]  # they keep malloc from giving back anything by itself
    del crowd
    before = held()
    spare_memory.give_back()
    assert before - held() > 500 * IMAGE
    assert all(part == b'\1' * IMAGE for part in stay)


def test_nothing_happens_where_another_library_allocates(monkeypatch):
    monkeypatch.setattr(spare_memory, '_trim', lambda: None)
    spare_memory.give_back()


def test_a_service_gives_memory_back_while_no_image_waits(monkeypatch):
    given, runs, released, served = threading.Event(), threading.Event(), threading.Event(), tiny_net()
    run = served.run

    def blocks(images, stitch):
        runs.set()
        released.wait(1.5)
        return run(images, stitch)

    monkeypatch.setattr(served, 'run', blocks)
    monkeypatch.setattr(service_module, 'GIVE_BACK_SECONDS', 0.0)
    monkeypatch.setattr(service_module, 'WATCH_SECONDS', 0.001)
    monkeypatch.setattr(service_module, 'give_back', given.set)
    image = torch.zeros(served.input_size)
    with running(served) as service:
        assert given.wait(10)
        futures = service.submit(served, [image], Demand(20_000), service.clock())
        assert runs.wait(10)
        futures += service.submit(served, [image], Demand(20_000), service.clock())  # waits for the first
        time.sleep(0.1)  # a look that began before that ends
        given.clear()
        time.sleep(0.1)
        assert not given.is_set()
        released.set()
        assert given.wait(10)
        assert len([future.result(10) for future in futures]) == 2
