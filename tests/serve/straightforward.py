"""The controller as directly as it can be written: every decision looks at the whole queue.

The package gives the same decisions where all batches of the programme are looked at, and never answers less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from snnet.serve import Choices, Controller, Decision, Request
from snnet.serve.backlog import ROUNDING
from snnet.serve.controller import ControllerState, KnownEnds, considered, planning_margin
from snnet.serve.policy import EVEN, HEADROOM, SPARED, Rush, admission_batch_size, highest_level
from snnet.serve.schedule import answers_all, finishes, latest_starts
from snnet.serve.waiting_queue import WaitingQueue


def admit(choices: Choices, state: ControllerState, request: Request, now: float) -> tuple[ControllerState, bool]:
    """Admits a request or refuses it, by the rule of `snnet.serve.controller.admit`."""
    now, factor = max(now, state.now), state.timing.factor
    asked = considered(choices, state, request, now)
    if asked is None:
        return replace(state, now=now), False
    tables, load, begin, scale, place, queue = asked
    known = state.known_ends.ends[: place + 1] if state.known_ends[:2] == (begin, scale) else ()
    rooms = [tables.padded(size) for size in queue.sizes]
    ends = finishes(tables.fast, *_slack(queue, begin, scale), known, rooms)
    if ends[-1] == math.inf:
        if not _was_infeasible_before(tables, state.queue, queue, begin, factor, place):
            return replace(state, now=now, load=load), False
        return replace(state, now=now, queue=queue, load=load, known_ends=KnownEnds()), True
    known_ends = KnownEnds(begin, scale, tuple(ends))
    return replace(state, now=now, queue=queue, load=load, known_ends=known_ends), True


def decide(choices: Choices, state: ControllerState, now: float) -> tuple[ControllerState, Decision | None]:
    """Decides what the worker does next; None while it runs a batch or nothing waits."""
    now = max(now, state.now)
    if state.running is not None or not state.queue.requests:
        return replace(state, now=now), None
    tables, factor = choices.corrected(state.timing.steps), state.timing.factor
    queue = state.queue
    dropped: tuple[Request, ...] = ()
    for scale in (factor * planning_margin(tables, state.timing, state.load), factor):
        slack, floors = _slack(queue, now, scale)
        starts = latest_starts(tables.fast, slack, floors)
        if starts[0] >= 0:
            break
    else:
        queue, dropped = _keep_most(tables, queue, slack, floors, starts)
        if not queue.requests:
            return replace(state, now=now, queue=queue, known_ends=KnownEnds()), Decision(None, (), dropped, 0.0, 0)
        slack, floors = _slack(queue, now, scale)
        starts = latest_starts(tables.fast, slack, floors)
    rush = Rush.at(state.load, now, scale)
    chosen, size = choose(tables, rush, slack, floors, starts)
    index, seconds = tables.pick(chosen, max(floors[:size]), size)
    decision = Decision(choices.choices[index].stitch, queue.requests[:size], dropped, seconds * factor, index)
    return ControllerState(now, queue.after(size), decision, now, state.load, state.timing), decision


def _slack(queue: WaitingQueue, begin: float, scale: float) -> tuple[list[float], tuple[int, ...]]:
    """Returns the table seconds until the deadline of each request, and its floor."""
    return [(deadline - begin) / scale + ROUNDING for deadline in queue.deadlines], queue.floors


def _was_infeasible_before(
    choices: Choices, old: WaitingQueue, new: WaitingQueue, begin: float, factor: float, place: int
) -> bool:
    """Whether the queue is infeasible even without the new request, which fits once the lost ones are dropped."""
    if latest_starts(choices.fast, *_slack(old, begin, factor))[0] >= 0:
        return False
    starts = latest_starts(choices.fast, *_slack(new, begin, factor))
    return next(first for first, start in enumerate(starts) if start >= 0) <= place


def _keep_most(
    choices: Choices, queue: WaitingQueue, slack: Sequence[float], floors: Sequence[int], starts: Sequence[float]
) -> tuple[WaitingQueue, tuple[Request, ...]]:
    """Splits a queue that cannot be answered as a whole into what still can be answered and what is dropped.

    Two ways are tried, and the one that drops less wins: dropping requests from the front until the rest is feasible,
    and dropping each request that cannot be answered in addition to those before it.
    """
    count = len(queue.requests)
    later = set(range(next(first for first, start in enumerate(starts) if start >= 0), count))
    kept: list[int] = []
    ends: list[float] = [0.0]
    for index in range(count):
        tried = [*kept, index]
        more = finishes(choices.fast, [slack[i] for i in tried], [floors[i] for i in tried], ends)
        if more[-1] < math.inf:
            kept, ends = tried, more
    lost = set(range(count)) - (later if len(later) >= len(kept) else set(kept))
    rest = queue.seen_from(choices, 0.0, 1.0).without(lost)
    return queue.without(lost, rest), tuple(queue.requests[index] for index in sorted(lost))


def choose(
    choices: Choices,
    rush: Rush,
    slack: Sequence[float],
    floors: Sequence[int],
    starts: Sequence[float],
) -> tuple[int, int]:
    """The level and batch size of `snnet.serve.policy.choose`, from all waiting requests.

    Args:
        choices, rush, starts: as there.
        slack: (N,), time until the deadline of each waiting request, rising.
        floors: (N,), floor of each request.
    """
    even = EVEN if admission_batch_size(choices, rush) == 1 else 1.0
    count = len(slack)
    level = highest_level(choices, rush)
    mixes = level < len(choices) - 1 and choices.rate(level, rush.due / 2) >= rush.rate
    for candidate in range(level + mixes, 0, -1):
        size, seconds = _batch(choices, candidate, slack, floors, starts, even)
        if not size or (size < count and (candidate > level or size < rush.rate * seconds)):
            continue
        kept = SPARED * rush.due if size < count else 0.0
        sustainable = answers_all(choices.rows[candidate], [due - kept for due in slack])
        if sustainable and _leaves_time(choices, rush, slack[size:], floors[size:], seconds):
            return candidate, size
    return 0, _batch(choices, 0, slack, floors, starts, even)[0]


def _leaves_time(choices: Choices, rush: Rush, slack: Sequence[float], floors: Sequence[int], seconds: float) -> bool:
    """Whether the fastest level could then answer what waits and what may arrive during the batch, all at once."""
    more = rush.burst(seconds)
    if seconds + HEADROOM * choices.time(0, len(slack) + more) > rush.due:
        return False
    queue = sorted([*zip(slack, floors, strict=True), *[(rush.due, 0)] * more])
    return latest_starts(choices.fast, [due for due, _ in queue], [floor for _, floor in queue])[0] >= seconds


def _batch(
    choices: Choices, level: int, slack: Sequence[float], floors: Sequence[int], starts: Sequence[float], even: float
) -> tuple[int, float]:
    """Returns size and time of the batch after which least time is needed for the rest; size 0 if there is none."""
    best, chosen, floor = math.inf, (0, 0.0), 0
    for size in range(1, min(choices.most, len(slack)) + 1):
        if floors[size - 1] > floor:
            floor = floors[size - 1]
        seconds = choices.pick(level, floor, size)[1]
        if seconds > slack[0]:
            break
        total = seconds + choices.time(level, len(slack) - size)
        if seconds <= starts[size] and total * even < best + 1e-12:
            best, chosen = total, (size, seconds)
    return chosen


class StraightforwardController(Controller):
    """The controller of the package with the functions of this module in place of `admit` and `decide`."""

    def submit(self, request: Request, now: float) -> bool:
        """Admits a request, or returns False if it is refused (see `admit`)."""
        self.state, admitted = admit(self.choices, self.state, request, now)
        return admitted

    def next(self, now: float) -> Decision | None:
        """Returns what the worker does next; None while it is busy or nothing waits."""
        self.state, decision = decide(self.choices, self.state, now)
        return decision
