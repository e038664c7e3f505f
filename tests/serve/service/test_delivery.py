from __future__ import annotations

import asyncio
import threading

import pytest

from snnet.serve.service.delivery import TO_THREADS, LoopDelivery, settle
from snnet.serve.service.refusal import Refusal


class CountingLoop:
    """Wakes a loop, and counts how often."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.create_future, self._loop, self.woken = loop.create_future, loop, 0

    def call_soon_threadsafe(self, *args: object) -> None:
        self.woken += 1
        self._loop.call_soon_threadsafe(*args)


def test_a_batch_wakes_the_loop_once_and_threads_get_theirs_too():
    async def ask() -> tuple[list[object], int]:
        loop = CountingLoop(asyncio.get_running_loop())
        delivery = LoopDelivery(loop)
        futures = [delivery.future() for _ in range(4)]
        outcomes = [*zip(futures, [1, 2, Refusal('failed', 'no')], strict=False), (futures[3], 4), (alone, 5)]
        pairs = [(TO_THREADS if future is alone else delivery, (future, value)) for future, value in outcomes]
        futures[3].cancel()  # its client went away
        threading.Thread(target=settle, args=(pairs,)).start()
        return await asyncio.gather(*futures, return_exceptions=True), loop.woken

    alone = TO_THREADS.future()
    (one, two, refusal, cancelled), woken = asyncio.run(ask())
    assert (one, two, str(refusal), type(cancelled)) == (1, 2, 'no', asyncio.CancelledError)
    assert (woken, alone.result(10)) == (1, 5)


def test_a_loop_that_is_closed_harms_nobody():
    loop = asyncio.new_event_loop()
    future = LoopDelivery(loop).future()
    loop.close()
    settle([(LoopDelivery(loop), (future, 1))])
    assert not future.done()


def test_an_exception_reaches_a_thread():
    future = TO_THREADS.future()
    settle([(TO_THREADS, (future, Refusal('failed', 'no')))])
    with pytest.raises(Refusal, match='no'):
        future.result(1)
