from __future__ import annotations

import asyncio
import threading

import pytest
import torch

import snnet
from tests.helpers.crowd import in_threads
from tests.helpers.families import every_net, images, shared_net


@pytest.mark.slow_for('swin', 'resnet', 'maps to windows')
@every_net
def test_sixteen_threads_with_different_stitches_get_what_one_thread_gets(name):
    net = shared_net(name)
    for anchor in net.anchors:
        anchor.clear_caches()  # so that the threads fill them at the same time
    x, count = images(net.input_size[1]), len(net.stitches)

    @torch.inference_mode()
    def work(offset):
        ids = [(offset * 7 + turn) % count for turn in range(4)]
        return [(i, net(x, stitch=i)) for i in ids]

    found = [pair for pairs in in_threads(work) for pair in pairs]
    for anchor in net.anchors:
        anchor.clear_caches()
    with torch.no_grad():
        expected = {i: net(x, stitch=i) for i in range(count)}
    assert [i for i, logits in found if not torch.equal(logits, expected[i])] == []


def test_using_is_seen_by_its_own_thread_only():
    net = shared_net('vit')
    net.set_stitch(1)
    gate = threading.Barrier(16)

    def work(i):
        with net.using(i % 10):
            gate.wait(30)  # all threads are inside of `using` now
            seen = net.active
            gate.wait(30)
        return seen, net.active

    assert in_threads(work) == [(i % 10, 1) for i in range(16)]
    assert net.active == 1


def test_using_is_seen_by_its_own_task_only():
    net = shared_net('vit')
    net.set_stitch(0)

    async def task(i):
        with net.using(i):
            await asyncio.sleep(0)
            return net.active

    async def both():
        return await asyncio.gather(*(task(i) for i in range(8)))

    assert asyncio.run(both()) == list(range(8))


def test_using_one_net_does_not_change_another():
    net, other = shared_net('vit'), shared_net('resnet')
    net.set_stitch(0)
    other.set_stitch(1)
    with net.using(3), other.using(2):
        assert (net.active, other.active) == (3, 2)
        with net.using(4):
            assert (net.active, other.active) == (4, 2)
    assert (net.active, other.active) == (0, 1)


def test_set_stitch_is_seen_by_all_threads_that_use_none_of_their_own():
    net = shared_net('vit')
    net.set_stitch(4)
    assert in_threads(lambda _: net.active, 4) == [4] * 4
    net.set_stitch(0)


def test_sixteen_threads_choose_within_their_own_budgets():
    net = shared_net('vit')
    costs = sorted({record.flops for record in net.records})
    expected = [snnet.select(net.records, flops=cost).record.stitch for cost in costs]

    def work(i):
        return [net.choose(costs[(i + turn) % len(costs)]).record.stitch for turn in range(50)]

    count = len(costs)
    assert in_threads(work) == [[expected[(i + turn) % count] for turn in range(50)] for i in range(16)]
