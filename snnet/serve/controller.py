"""Decides which stitch answers which requests next.

The decisions are pure functions of the waiting requests, recent arrivals and measured times. The caller passes the time
in seconds: from a monotonic clock in a service, from the simulated clock in a simulation. A time before the last one
counts as the last one. One worker runs one batch at a time. This module needs no torch.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import SnnetError
from .backlog import ROUNDING, Backlog
from .drop_lost import lost_requests
from .policy import Rush, admission_batch_size, choose
from .recent_load import Load
from .stitch_choices import Choices
from .time_correction import Timing
from .waiting_queue import Request, WaitingQueue

DEVIATIONS = 1.0
"""Batches are planned to take this many standard deviations longer than their median.

With two, hardly any answer was late, but far more requests were refused than that saved (docs/results/load.md).
"""


class Decision(NamedTuple):
    """What the worker does next.

    Attributes:
        stitch: id of the stitch to run; None if the batch is empty.
        batch: requests to answer with it.
        dropped: admitted requests that can no longer be answered in time because batches took longer than expected.
        seconds: expected (median) time of the batch.
        choice: index of the choice that the stitch belongs to.
    """

    stitch: int | None
    batch: tuple[Request, ...]
    dropped: tuple[Request, ...]
    seconds: float
    choice: int


class KnownEnds(NamedTuple):
    """What the last admission found out about the waiting requests, and what this depends on.

    Attributes:
        begin: time from which it holds.
        scale: seconds per table second.
        ends: earliest ends of the first 0, 1, ... requests, as far as they were computed.
        feasible: whether all waiting requests can be answered in time.
    """

    begin: float = 0.0
    scale: float = 0.0
    ends: tuple[float, ...] = ()
    feasible: bool = False


@dataclass(frozen=True, slots=True)
class ControllerState:
    """Everything that decisions depend on, apart from the choices.

    Attributes:
        now: latest time that was passed in.
        queue: waiting requests, earliest deadline first.
        running: what the worker is doing; None if it is idle.
        started: time at which it started that.
        load: recent arrivals.
        timing: correction of the latency tables.
        known_ends: a result of the last admission that the next one can reuse.
    """

    now: float
    queue: WaitingQueue
    running: Decision | None
    started: float
    load: Load
    timing: Timing
    known_ends: KnownEnds = KnownEnds()

    @classmethod
    def initial(cls, choices: Choices) -> ControllerState:
        """Returns the state before the first request."""
        load = Load.expected(max(row[-1] for row in choices.rows), choices.capacity)
        timing = Timing.expected(len(choices), choices.spread)
        return cls(-math.inf, WaitingQueue(), None, -math.inf, load, timing)


class ConsideredRequest(NamedTuple):
    """A request that is considered for admission, and how the worker stands then.

    Attributes:
        choices: with times corrected by what batches took.
        load: recent arrivals, this one among them.
        begin: time at which the worker is free.
        scale: seconds per table second, for a careful plan.
        place: where the request would wait.
        queue: the waiting requests with this one.
    """

    choices: Choices
    load: Load
    begin: float
    scale: float
    place: int
    queue: WaitingQueue


def considered(choices: Choices, state: ControllerState, request: Request, now: float) -> ConsideredRequest | None:
    """Returns what admission decides by; None if no stitch could answer in time, even at once."""
    tables, factor = choices.corrected(state.timing.steps), state.timing.factor
    left, floor = request.deadline - now, choices.floor(request.least)
    if floor is None or left < factor * tables.fast[floor][1] - ROUNDING:
        return None
    load = state.load.seen(now, left)
    scale = factor * planning_margin(tables, state.timing, load)
    begin = now
    if state.running is not None:
        begin = max(now, state.started + state.running.seconds * scale / factor)
    place = bisect_right(state.queue.deadlines, request.deadline)
    queue = state.queue.insert(tables, place, request, floor, admission_batch_size(tables, Rush.at(load, now, scale)))
    return ConsideredRequest(tables, load, begin, scale, place, queue)


def admit(choices: Choices, state: ControllerState, request: Request, now: float) -> tuple[ControllerState, bool]:
    """Admits a request, or refuses it if answering it in time is impossible or would make an admitted request late.

    Possible means: with batches of the fastest choices, starting when the running batch should end. Under heavy load,
    batches must also leave room for others (`policy.admission_batch_size`).

    Returns:
        The new state, and whether the request was admitted.

    Raises:
        SnnetError: the time or the deadline is not a finite number.
    """
    if not math.isfinite(now + request.deadline):
        raise SnnetError(f'request {request.id!r} at {now} has no finite deadline: {request.deadline}')
    now, factor = max(now, state.now), state.timing.factor
    asked = considered(choices, state, request, now)
    if asked is None:
        return replace(state, now=now), False
    tables, load, begin, scale, place, queue = asked
    known = state.known_ends if state.known_ends[:2] == (begin, scale) else KnownEnds(begin, scale)
    fits, ends = queue.seen_from(tables, begin, scale).admits(queue.sizes, known.ends[: place + 1])
    if fits:
        known_ends = KnownEnds(begin, scale, tuple(ends), feasible=True)
        return replace(state, now=now, queue=queue, load=load, known_ends=known_ends), True
    was_feasible = known.feasible and scale >= factor
    if was_feasible or state.queue.seen_from(tables, begin, factor).can_start():
        return replace(state, now=now, load=load), False
    if not queue.after(place).seen_from(tables, begin, factor).can_start():
        return replace(state, now=now, load=load), False
    # the waiting requests cannot all be answered, and the new one fits once those that are lost are dropped
    return replace(state, now=now, queue=queue, load=load, known_ends=KnownEnds()), True


def decide(choices: Choices, state: ControllerState, now: float) -> tuple[ControllerState, Decision | None]:
    """Decides what the worker does next; None while it runs a batch or nothing waits."""
    now = max(now, state.now)
    if state.running is not None or not state.queue.requests:
        return replace(state, now=now), None
    tables, factor = choices.corrected(state.timing.steps), state.timing.factor
    queue = state.queue
    dropped: tuple[Request, ...] = ()
    backlog, starts = _view(queue, tables, now, factor * planning_margin(tables, state.timing, state.load), factor)
    if starts[0] < 0:
        lost, rest, starts = lost_requests(backlog)
        dropped = tuple(map(queue.requests.__getitem__, sorted(lost)))
        queue = queue.without(lost, rest)
        if not queue.requests:
            state = replace(state, now=now, queue=queue, known_ends=KnownEnds())
            return state, Decision(None, (), dropped, 0.0, 0)
        backlog = queue.seen_from(tables, now, factor)
    chosen, size = choose(tables, Rush.at(state.load, now, backlog.scale), backlog, starts)
    index, seconds = tables.pick(chosen, max(queue.floors[:size]), size)
    decision = Decision(choices.choices[index].stitch, queue.requests[:size], dropped, seconds * factor, index)
    return ControllerState(now, queue.after(size), decision, now, state.load, state.timing), decision


def finish(state: ControllerState, now: float, measured: float | None = None) -> ControllerState:
    """Notes that the worker has finished its batch.

    Args:
        state: a state with a running batch.
        now: current time in seconds.
        measured: seconds that the batch took; by default the time since it was decided.

    Raises:
        SnnetError: no batch is running.
    """
    if state.running is None:
        raise SnnetError('no batch is running, so none can be done')
    now = max(now, state.now)
    took = now - state.started if measured is None else measured
    timing = state.timing.learned(state.running.choice, took, state.running.seconds)
    return replace(state, now=now, running=None, timing=timing, known_ends=KnownEnds())


def planning_margin(choices: Choices, timing: Timing, load: Load) -> float:
    """Factor by which batches are planned longer. It uses at most half of the time that usual deadlines leave."""
    if timing.variance == 0:
        return 1.0
    usual = load.deadline / (timing.factor * choices.fast[0][1])
    return max(1.0, min(timing.margin(DEVIATIONS), (1 + usual) / 2))


def _view(
    queue: WaitingQueue, choices: Choices, now: float, careful: float, factor: float
) -> tuple[Backlog, list[float]]:
    """Returns the queue with the slower of two scales at which it is feasible, or the faster, and its latest starts."""
    for scale in (careful, factor) if careful > factor else (factor,):
        backlog = queue.seen_from(choices, now, scale)
        starts = backlog.latest_starts()
        if starts[0] >= 0:
            break
    return backlog, starts


class Controller:
    """The functions of this module with their state, for one worker. Threads that share it need a lock.

    Args:
        choices: the stitches that may run, and how long they take.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices, self.state = choices, ControllerState.initial(choices)

    def submit(self, request: Request, now: float) -> bool:
        """Admits a request, or returns False if it is refused (see `admit`)."""
        self.state, admitted = admit(self.choices, self.state, request, now)
        return admitted

    def next(self, now: float) -> Decision | None:
        """Returns what the worker does next; None while it is busy or nothing waits."""
        self.state, decision = decide(self.choices, self.state, now)
        return decision

    def done(self, now: float, measured: float | None = None) -> None:
        """Notes that the worker has finished its batch (see `finish`)."""
        self.state = finish(self.state, now, measured)
