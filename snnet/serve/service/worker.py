"""The worker of a device: a thread that runs one batch at a time, and is replaced when it dies or hangs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..stitch_choices import Choices
from ..waiting_queue import Request
from .delivery import TO_THREADS, Delivery, settle
from .queue_set import QueueSet, Work
from .refusal import Refusal
from .ticket import ImageAnswer, Run, Ticket, fail

_log = logging.getLogger(__name__)
SLOWER = 20.0
"""A batch that takes this many times longer than expected, and longer than the limit in seconds, hangs."""
MOST_LOST = 3
"""Threads that may hang at a time before the service calls itself unhealthy."""


class _RunningBatch(NamedTuple):
    work: Work
    tickets: list[Ticket]
    started: float


class Worker:
    """Runs the batches of a set of queues on one device.

    Threads may call every method. A batch that raises fails alone. A thread that dies, or hangs in a batch, is
    replaced (`watch`): a hanging thread cannot be ended, so it is left behind, and what it computes is discarded. A net
    that computes in a process is interrupted, which ends the thread, too.

    Args:
        hang_seconds: shortest time after which a batch counts as hanging (see `SLOWER`).
        clock: monotonic seconds.

    Attributes:
        lost: how many workers hung or died since the start.
    """

    def __init__(self, hang_seconds: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._queues = QueueSet()
        self._hang_seconds, self._clock = hang_seconds, clock
        self._condition = threading.Condition()
        self._tickets: dict[int, Ticket] = {}
        self._count = 0
        self._batch: _RunningBatch | None = None
        self._generation = 0
        self._thread: threading.Thread | None = None
        self._closed = False
        self.lost = 0
        self._left_behind: list[threading.Thread] = []

    @property
    def waiting(self) -> int:
        """How many images wait."""
        return self._queues.waiting

    @property
    def unanswered(self) -> int:
        """How many images wait or run."""
        with self._condition:
            return len(self._tickets) + (0 if self._batch is None else len(self._batch.tickets))

    @property
    def healthy(self) -> bool:
        """Whether the worker can go on; False while too many threads hang."""
        self._left_behind = [thread for thread in self._left_behind if thread.is_alive()]
        return len(self._left_behind) < MOST_LOST

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._loop, args=(self._generation,), name='snnet worker', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after its batch; images that still wait are refused."""
        with self._condition:
            self._closed = True
            self._generation += 1
            left = [*self._tickets.values()]
            self._tickets.clear()
            self._condition.notify_all()
        fail(left, 'draining', 'the service ends and no longer computes')
        if self._thread is not None:
            self._thread.join(timeout=1)

    def seconds_of_work(self) -> float:
        """Seconds in which the fastest stitches would do all that is running or waiting."""
        with self._condition:
            return self._queues.seconds_of_work(self._clock())

    def could_admit(self, queue: Hashable, choices: Choices, count: int, deadline: float, least: float) -> bool:
        """Whether `submit` would admit so many images now."""
        requests = [Request(-1, deadline, least)] * count
        with self._condition:
            return self._queues.could_admit(queue, choices, requests, self._clock())

    def submit(
        self,
        queue: Hashable,
        choices: Choices,
        images: Sequence[Tensor],
        run: Run,
        deadline: float,
        least: float,
        delivery: Delivery = TO_THREADS,
    ) -> list[Any] | None:
        """Admits images, all of them or none.

        Args:
            queue: name of their queue.
            choices: the stitches that may answer.
            images: each (C, H, W).
            run: what computes a batch of this queue.
            deadline: on the clock.
            least: lowest acceptable accuracy in percent.
            delivery: makes the futures, and settles them.

        Returns:
            The future answers (`ImageAnswer`); None if the deadline cannot be met.
        """
        with self._condition:
            now = self._clock()
            ids = range(self._count, self._count + len(images))
            if self._closed or not self._queues.submit(queue, choices, [Request(i, deadline, least) for i in ids], now):
                return None
            self._count += len(images)
            tickets = [Ticket(image, run, now, delivery, delivery.future()) for image in images]
            self._tickets.update(zip(ids, tickets, strict=True))
            self._condition.notify()
        return [ticket.future for ticket in tickets]

    def uses(self, run: Run) -> bool:
        """Whether an image that waits or runs needs this."""
        with self._condition:
            tickets = [*self._tickets.values(), *([] if self._batch is None else self._batch.tickets)]
            return any(ticket.run is run for ticket in tickets)

    def forget_idle(self, keep: set[Hashable]) -> None:
        """Drops empty queues that are not in `keep`."""
        with self._condition:
            self._queues.forget_idle(keep)

    def watch(self) -> None:
        """Replaces the thread if it died or hangs; to be called a few times per second."""
        with self._condition:
            now, batch = self._clock(), self._batch
            if self._closed or self._thread is None:
                return
            died = not self._thread.is_alive()
            limit = self._hang_seconds if batch is None else max(
                self._hang_seconds, SLOWER * batch.work.decision.seconds
            )  # fmt: skip
            hangs = not died and batch is not None and now - batch.started > limit
            if not died and not hangs:
                return
            self._generation += 1
            self._batch = None
            self.lost += 1
            if hangs and batch is not None:
                self._left_behind.append(self._thread)
                batch.tickets[0].interrupt()
            if batch is not None:
                self._queues.done(now, batch.work.decision.seconds)  # as expected: this teaches nothing about times
            self.start()
        tickets = [] if batch is None else batch.tickets
        what = f'hangs in a batch since {now - batch.started:.1f} s' if hangs and batch is not None else 'died'
        _log.error('the worker %s: another one takes over, %d requests are lost', what, len(tickets))
        fail(tickets, 'worker_lost', f'the worker {what}, and was replaced: try again', 0.0)

    def _loop(self, generation: int) -> None:
        while True:
            batch = self._take(generation)
            if batch is None:
                return
            answer: np.ndarray | Exception
            try:
                answer = batch.tickets[0].run([ticket.image for ticket in batch.tickets], _stitch(batch))
            except Refusal as refusal:
                answer = refusal
            except Exception as error:
                _log.exception('stitch %d failed on a batch of %d', _stitch(batch), len(batch.tickets))
                answer = error
            with self._condition:
                if generation != self._generation:
                    return  # left behind: another thread has taken over, and the requests have been refused
                now = self._clock()
                computed = now - batch.started
                self._queues.done(now, batch.work.decision.seconds if isinstance(answer, Exception) else computed)
                self._batch = None
                self.lost += isinstance(answer, Refusal)
            _give(batch, answer, computed, now)

    def _take(self, generation: int) -> _RunningBatch | None:
        """Waits for the next batch; None if another thread has taken over or the worker is closed."""
        while True:
            dropped: list[Ticket] = []
            with self._condition:
                if generation != self._generation:
                    return None
                work = self._queues.next(self._clock())
                if work is None:
                    self._condition.wait()
                    continue
                dropped = [self._tickets.pop(_id(request)) for request in work.decision.dropped]
                if work.decision.stitch is not None:
                    tickets = [self._tickets.pop(_id(request)) for request in work.decision.batch]
                    self._batch = _RunningBatch(work, tickets, self._clock())
                batch = self._batch
            if dropped:
                message = 'batches took longer than expected, so this request can no longer be answered in time'
                fail(dropped, 'given_up', message, self.seconds_of_work())
            if batch is not None:
                return batch


def _stitch(batch: _RunningBatch) -> int:
    assert batch.work.decision.stitch is not None
    return batch.work.decision.stitch


def _id(request: Request) -> int:
    assert isinstance(request.id, int)
    return request.id


def _give(batch: _RunningBatch, answer: np.ndarray | Exception, computed: float, now: float) -> None:
    if isinstance(answer, Refusal):
        fail(batch.tickets, answer.reason, str(answer), answer.retry_after)
        return
    if isinstance(answer, Exception):
        message = 'the network failed on the batch of this request; the log says why'
        fail(batch.tickets, 'failed', message)
        return
    size, stitch = len(answer), _stitch(batch)
    settle(
        [
            (t.delivery, (t.future, ImageAnswer(logits, stitch, size, batch.started - t.admitted, computed, now)))
            for t, logits in zip(batch.tickets, answer, strict=True)
        ]
    )
