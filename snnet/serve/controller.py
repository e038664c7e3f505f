"""Which stitch answers which requests next: pure functions of what waits, what came of late and what was measured.

Time is a number of seconds that the caller gives: of a monotonic clock in a service, of the simulation in a simulation.
A moment before the last one counts as the last one. One worker runs one batch at a time. No torch here.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import SnnetError
from .policy import Rush, choose, room
from .recent_load import Load
from .schedule import finishes, latest_starts
from .stitch_choices import Choices
from .time_correction import Timing

DEVIATIONS = 2.0
"""Standard deviations by which batches are planned longer than their median."""
_ROUNDING = 1e-9
"""Seconds that sums of floating-point numbers may be off."""


@dataclass(frozen=True, slots=True)
class Request:
    """Something to be answered.

    Attributes:
        id: the caller's name for it.
        deadline: moment by which it must have been answered, in seconds.
        least: accuracy in percent that its answer needs at least; 0 takes what the load allows.
    """

    id: Hashable
    deadline: float
    least: float = 0.0


class Waiting(NamedTuple):
    """An admitted request.

    Attributes:
        request: as it came.
        floor: index of the first choice that is accurate enough for it.
        room: size of the batch that it must be able to begin in time (see `policy.room`).
    """

    request: Request
    floor: int
    room: int


class Decision(NamedTuple):
    """What the worker does next.

    Attributes:
        stitch: to run; None where the batch is empty.
        batch: requests to answer with it.
        dropped: requests that had been admitted and can no longer be answered in time, because batches took longer
            than was expected of them.
        seconds: expected of the batch (median).
        choice: index of the choice that the stitch is of.
    """

    stitch: int | None
    batch: tuple[Request, ...]
    dropped: tuple[Request, ...]
    seconds: float
    choice: int


class Plan(NamedTuple):
    """The earliest ends of what waits, as admission last found them, and what they depend on."""

    begin: float
    scale: float
    ends: tuple[float, ...]


_NONE = Plan(0.0, 0.0, ())


@dataclass(frozen=True, slots=True)
class State:
    """All that decisions depend on besides the choices.

    Attributes:
        now: the latest moment that was given.
        queue: what waits, by deadline.
        running: what the worker does; None where it is idle.
        started: moment at which that began.
        load: recent arrivals.
        timing: correction of the tables.
        plan: kept for the next admission.
    """

    now: float
    queue: tuple[Waiting, ...]
    running: Decision | None
    started: float
    load: Load
    timing: Timing
    plan: Plan = _NONE

    @classmethod
    def initial(cls, choices: Choices) -> State:
        """Before the first request."""
        load = Load.expected(max(row[-1] for row in choices.rows), choices.capacity)
        timing = Timing.expected(len(choices), choices.spread)
        return cls(-math.inf, (), None, -math.inf, load, timing)


def admit(choices: Choices, state: State, request: Request, now: float) -> tuple[State, bool]:
    """Takes a request in, or refuses it: where answering it in time is impossible or would cost an admitted one.

    Possible means: by batches of the fastest choices, begun when the running batch should be done. Where requests
    crowd, batches must keep room besides (see `policy.room`).

    Raises:
        SnnetError: a moment or deadline that is no finite number.
    """
    if not math.isfinite(now + request.deadline):
        raise SnnetError(f'request {request.id!r} at {now} has no finite deadline: {request.deadline}')
    now = max(now, state.now)
    tables, factor = choices.corrected(state.timing.steps), state.timing.factor
    left, floor = request.deadline - now, choices.floor(request.least)
    if floor is None or left < factor * tables.fast[floor][1] - _ROUNDING:
        return replace(state, now=now), False
    load = state.load.seen(now, left)
    scale = factor * _margin(tables, state.timing, load)
    begin = now
    if state.running is not None:
        begin = max(now, state.started + state.running.seconds * scale / factor)
    place = bisect_right(state.queue, request.deadline, key=lambda waiting: waiting.request.deadline)
    waiting = Waiting(request, floor, room(tables, Rush.at(load, now, scale)))
    queue = (*state.queue[:place], waiting, *state.queue[place:])
    known = state.plan.ends[: place + 1] if state.plan[:2] == (begin, scale) else ()
    rooms = [tables.roomy(waiting.room) for waiting in queue]
    ends = finishes(tables.fast, *_slack(queue, begin, scale), known, rooms)
    if ends[-1] == math.inf:
        if not _broken(tables, state.queue, queue, begin, factor, place):
            return replace(state, now=now, load=load), False
        return replace(state, now=now, queue=queue, load=load, plan=_NONE), True
    return replace(state, now=now, queue=queue, load=load, plan=Plan(begin, scale, tuple(ends))), True


def decide(choices: Choices, state: State, now: float) -> tuple[State, Decision | None]:
    """What the worker does next; None while it runs a batch or nothing waits."""
    now = max(now, state.now)
    if state.running is not None or not state.queue:
        return replace(state, now=now), None
    tables, factor = choices.corrected(state.timing.steps), state.timing.factor
    queue = state.queue
    dropped: tuple[Request, ...] = ()
    for scale in (factor * _margin(tables, state.timing, state.load), factor):
        slack, floors = _slack(queue, now, scale)
        starts = latest_starts(tables.fast, slack, floors)
        if starts[0] >= 0:
            break
    else:
        queue, dropped = _salvaged(tables, queue, slack, floors, starts)
        if not queue:
            return replace(state, now=now, queue=(), plan=_NONE), Decision(None, (), dropped, 0.0, 0)
        slack, floors = _slack(queue, now, scale)
        starts = latest_starts(tables.fast, slack, floors)
    rush = Rush.at(state.load, now, scale)
    chosen, size = choose(tables, rush, slack, floors, starts)
    index, seconds = tables.pick(chosen, max(floors[:size]), size)
    batch = tuple(waiting.request for waiting in queue[:size])
    decision = Decision(choices.choices[index].stitch, batch, dropped, seconds * factor, index)
    return State(now, queue[size:], decision, now, state.load, state.timing), decision


def finish(state: State, now: float, measured: float | None = None) -> State:
    """The worker has run its batch.

    Args:
        state: with a running batch.
        now: the moment.
        measured: seconds that the batch took; by default since it was decided.

    Raises:
        SnnetError: no batch is running.
    """
    if state.running is None:
        raise SnnetError('no batch is running that could be done')
    now = max(now, state.now)
    took = now - state.started if measured is None else measured
    timing = state.timing.learned(state.running.choice, took, state.running.seconds)
    return replace(state, now=now, running=None, timing=timing, plan=_NONE)


def _margin(choices: Choices, timing: Timing, load: Load) -> float:
    """Factor by which batches are planned longer; it takes at most half the room that usual deadlines leave."""
    if timing.variance == 0:
        return 1.0
    usual = load.deadline / (timing.factor * choices.fast[0][1])
    return max(1.0, min(timing.margin(DEVIATIONS), (1 + usual) / 2))


def _slack(queue: Sequence[Waiting], begin: float, scale: float) -> tuple[list[float], list[int]]:
    """Table seconds until the deadline of each request, and its floor."""
    slack = [(waiting.request.deadline - begin) / scale + _ROUNDING for waiting in queue]
    return slack, [waiting.floor for waiting in queue]


def _broken(
    choices: Choices, old: Sequence[Waiting], new: Sequence[Waiting], begin: float, factor: float, place: int
) -> bool:
    """Whether what waits cannot be answered even without a new request, which can be when the lost ones are dropped."""
    if latest_starts(choices.fast, *_slack(old, begin, factor))[0] >= 0:
        return False
    starts = latest_starts(choices.fast, *_slack(new, begin, factor))
    return next(first for first, start in enumerate(starts) if start >= 0) <= place


def _salvaged(
    choices: Choices, queue: tuple[Waiting, ...], slack: Sequence[float], floors: Sequence[int], starts: Sequence[float]
) -> tuple[tuple[Waiting, ...], tuple[Request, ...]]:
    """What can still be answered of a queue that cannot be as a whole, and what is dropped.

    Dropped are the first ones, until the rest can be answered, or else each that cannot be besides those before it;
    whichever is less.
    """
    later = set(range(next(first for first, start in enumerate(starts) if start >= 0), len(queue)))
    kept: list[int] = []
    ends: list[float] = [0.0]
    for index in range(len(queue)):
        tried = [*kept, index]
        more = finishes(choices.fast, [slack[i] for i in tried], [floors[i] for i in tried], ends)
        if more[-1] < math.inf:
            kept, ends = tried, more
    rest = later if len(later) >= len(kept) else set(kept)
    dropped = tuple(waiting.request for index, waiting in enumerate(queue) if index not in rest)
    return tuple(waiting for index, waiting in enumerate(queue) if index in rest), dropped


class Controller:
    """The functions of this module with their state, for one worker; guard it with a lock where threads share it.

    Args:
        choices: what may run, and how long it takes.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices, self.state = choices, State.initial(choices)

    def submit(self, request: Request, now: float) -> bool:
        """Takes a request in; False where it is refused at once (see `admit`)."""
        self.state, admitted = admit(self.choices, self.state, request, now)
        return admitted

    def next(self, now: float) -> Decision | None:
        """What the worker does next; None while it is busy or nothing waits."""
        self.state, decision = decide(self.choices, self.state, now)
        return decision

    def done(self, now: float, measured: float | None = None) -> None:
        """The worker has run its batch (see `finish`)."""
        self.state = finish(self.state, now, measured)
