"""The queues of one worker: a controller for each net, and for each set of stitches that requests restrict it to.

Each controller believes that the worker is its alone. When another queue has work, a controller is told that the worker
is busy for as long as that work takes; so a request is admitted only if it can be answered after everything that waits
elsewhere. This module needs no torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..controller import Controller, Decision, KnownEnds
from ..stitch_choices import STEP, Choices
from ..waiting_queue import Request

KEPT = 0.9
"""Share of the logarithm of a correction that is left after an idle worker has refused a request."""


class Work(NamedTuple):
    """What the worker does next.

    Attributes:
        queue: name of the queue whose requests run.
        decision: of that queue's controller.
    """

    queue: Hashable
    decision: Decision


class QueueSet:
    """Queues that share one worker. Threads that share it need a lock."""

    def __init__(self) -> None:
        self._controllers: dict[Hashable, Controller] = {}
        self._running: Hashable | None = None

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(len(controller.state.queue.requests) for controller in self._controllers.values())

    def submit(self, queue: Hashable, choices: Choices, requests: Sequence[Request], now: float) -> bool:
        """Admits all of some requests, or none of them.

        Args:
            queue: name of the queue, made where it is new.
            choices: the stitches that may answer, the same for every request of the queue.
            requests: requests that are answered together or not at all.
            now: time in seconds.
        """
        return self._try(queue, self._controller(queue, choices), requests, now, keep=True)

    def could_admit(self, queue: Hashable, choices: Choices, requests: Sequence[Request], now: float) -> bool:
        """Whether `submit` would admit requests now; a refusal counts as their arrival, as it does there."""
        return self._try(queue, self._controller(queue, choices), requests, now, keep=False)

    def next(self, now: float) -> Work | None:
        """Returns what the worker does next, from the queue whose first request is due first; None if nothing waits."""
        if self._running is not None:
            return None
        waiting = [
            (c.state.queue.deadlines[0], name) for name, c in self._controllers.items() if c.state.queue.requests
        ]
        for _, name in sorted(waiting, key=lambda pair: pair[0]):
            decision = self._controllers[name].next(now)
            if decision is not None:
                self._running = None if decision.stitch is None else name
                return Work(name, decision)
        return None

    def done(self, now: float, measured: float | None = None) -> None:
        """Notes that the worker has finished its batch (see `controller.finish`)."""
        assert self._running is not None, 'no batch is running, so none can be done'
        self._controllers[self._running].done(now, measured)
        self._running = None

    def seconds_of_work(self, now: float) -> float:
        """Returns the seconds in which the fastest stitches would do all that is running or waiting."""
        return self._rest_of_batch(now) + sum(map(_seconds_waiting, self._controllers.values()))

    def forget_idle(self, keep: set[Hashable]) -> None:
        """Drops empty queues whose name is not in `keep`."""
        for name, controller in [*self._controllers.items()]:
            if name not in keep and name != self._running and not controller.state.queue.requests:
                del self._controllers[name]

    def _controller(self, queue: Hashable, choices: Choices) -> Controller:
        if queue not in self._controllers:
            self._controllers[queue] = Controller(choices)
        return self._controllers[queue]

    def _try(
        self, queue: Hashable, controller: Controller, requests: Sequence[Request], now: float, keep: bool
    ) -> bool:
        before = controller.state
        elsewhere = self._seconds_elsewhere(queue, now)
        if elsewhere > 0:
            _occupy(controller, elsewhere, now)
        admitted = all(controller.submit(request, now) for request in requests)
        after = controller.state
        if admitted and keep:
            controller.state = replace(after, running=before.running, started=before.started)
        elif admitted:
            controller.state = before
        else:
            controller.state = replace(before, now=after.now, load=after.load, known_ends=KnownEnds())
            if self._running is None and not self.waiting:
                _forget_times(controller)
        return admitted

    def _seconds_elsewhere(self, queue: Hashable, now: float) -> float:
        if len(self._controllers) == 1:
            return 0.0
        seconds = sum(_seconds_waiting(c) for name, c in self._controllers.items() if name != queue)
        return seconds + (self._rest_of_batch(now) if self._running != queue else 0.0)

    def _rest_of_batch(self, now: float) -> float:
        if self._running is None:
            return 0.0
        state = self._controllers[self._running].state
        assert state.running is not None
        return max(0.0, state.started + state.running.seconds - now)


def _seconds_waiting(controller: Controller) -> float:
    count = len(controller.state.queue.requests)
    return controller.state.timing.factor * controller.choices.time(0, count) if count else 0.0


def _forget_times(controller: Controller) -> None:
    """Moves the correction of the times towards the latency tables.

    An idle worker that refuses a request expects even its fastest stitch to be too slow. That may have been measured
    during a hiccup, and a worker that refuses everything measures nothing else.
    """
    timing = controller.state.timing
    own = tuple(KEPT * value for value in timing.own)
    steps = tuple(round(value / STEP) for value in own)
    controller.state = replace(
        controller.state, timing=timing._replace(common=KEPT * timing.common, own=own, steps=steps)
    )


def _occupy(controller: Controller, seconds: float, now: float) -> None:
    """Lets a controller believe that the worker is busy for so many seconds more."""
    state = controller.state
    if state.running is None:
        state = replace(state, running=Decision(None, (), (), seconds, 0), started=now)
    else:
        state = replace(state, running=state.running._replace(seconds=state.running.seconds + seconds))
    controller.state = state
