"""Simulates a service: the controller's own functions against given arrivals, in simulated time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import SnnetError
from ..utils.seeds import key
from .controller import Controller
from .stitch_choices import Choice, Choices
from .waiting_queue import Request

_REPORT_EVERY = 500
"""Requests between two reports of progress."""
ATTAINMENT = 0.999
"""Share of requests that the best fixed network must answer in time."""


@dataclass(frozen=True)
class World:
    """How batch times in the simulation differ from the tables.

    Attributes:
        factor: factor by which batches take longer than the tables say.
        spread: standard deviation of the logarithm of a batch's time; None uses the spread of the tables.
        seed: seed of the random batch times.
    """

    factor: float = 1.0
    spread: float | None = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf or not 0 <= (self.spread or 0.0) < math.inf:
            raise SnnetError(
                f'batch times need a factor above 0 and a spread of at least 0, not {self.factor} and {self.spread}'
            )


@dataclass(frozen=True)
class Outcome:
    """What happened to the requests of a simulation.

    Attributes:
        requests: number of requests.
        attainment: share answered in time, in percent.
        accuracy: mean top-1 of the requests answered in time, in percent.
        effective: mean top-1 of all requests, in percent; those not answered in time count as 0.
        refused: requests refused on arrival.
        dropped: admitted requests that were given up before they ran.
        late: requests answered after their deadline.
        mean, p50, p99: milliseconds from arrival to answer, over the answered requests.
        utilization: share of the time in which the worker was busy, in percent.
    """

    requests: int
    attainment: float
    accuracy: float
    effective: float
    refused: int
    dropped: int
    late: int
    mean: float
    p50: float
    p99: float
    utilization: float

    def to_json(self) -> dict[str, Any]:
        """Returns the values for JSON."""
        return asdict(self)


def simulate(
    choices: Choices,
    moments: Sequence[float] | np.ndarray,
    deadlines: float | np.ndarray,
    world: World | None = None,
    progress: Callable[[int], object] | None = None,
) -> Outcome:
    """Simulates a service with one worker until every request is answered, refused or dropped.

    Args:
        choices: the stitches that the controller may run.
        moments: (N,), times of arrival in seconds, rising.
        deadlines: seconds from arrival to deadline, one number or (N,).
        world: how batch times differ from the tables.
        progress: called from time to time with the number of requests that have arrived since the last call.

    Raises:
        SnnetError: there are no arrivals, or a deadline is not a positive number.
    """
    arrived = np.asarray(moments, dtype=float)
    due = arrived + deadlines
    if not len(arrived) or not np.isfinite(due).all() or not (due > arrived).all():
        raise SnnetError('a simulation needs arrivals, and deadlines that are positive numbers of seconds')
    answers = _run(Controller(choices), arrived.tolist(), due.tolist(), _Clock(world or World(), choices), progress)
    return _outcome(arrived, due, answers)


def best_fixed(
    choices: Choices,
    moments: Sequence[float] | np.ndarray,
    deadlines: float | np.ndarray,
    world: World | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[Choice, Outcome]:
    """Finds the most accurate single network that answers 99.9 % in time, with hindsight; the fastest if none does.

    It uses the controller's batches, order and admission. The search bisects, because attainment falls with speed.
    """
    low, high = 0, len(choices) - 1
    outcome = simulate(choices.only(0), moments, deadlines, world, progress)
    best = choices.choices[0], outcome
    while low < high:
        middle = (low + high + 1) // 2
        outcome = simulate(choices.only(middle), moments, deadlines, world, progress)
        if outcome.attainment >= 100 * ATTAINMENT:
            low, best = middle, (choices.choices[middle], outcome)
        else:
            high = middle - 1
    return best


class _Clock:
    """How long batches really take: the median of the tables, times a factor, times a lognormal draw per batch."""

    def __init__(self, world: World, choices: Choices) -> None:
        self._spread = choices.spread if world.spread is None else world.spread
        self._factor, self._batches = world.factor, 0
        self._random = np.random.default_rng(key(world.seed, 'service times'))
        self._draws: list[float] = []
        self._rows = {choice.stitch: choice.seconds for choice in choices.choices}

    def seconds(self, stitch: int, size: int) -> float:
        """Returns the seconds of the next batch."""
        exact = self._factor * self._rows[stitch][size]
        if not self._spread:
            return exact
        if not self._draws:
            self._draws = np.exp(self._spread * self._random.standard_normal(4096)).tolist()
        return exact * self._draws.pop()


@dataclass
class _AnswerTimes:
    """Time and accuracy of the answer to each request; NaN where there is none."""

    moment: np.ndarray
    top1: np.ndarray
    refused: int
    busy: float


def _run(
    controller: Controller,
    arrived: list[float],
    due: list[float],
    clock: _Clock,
    progress: Callable[[int], object] | None,
) -> _AnswerTimes:
    count, reported, at, now, busy, refused = len(arrived), 0, 0, 0.0, 0.0, 0
    answers = _AnswerTimes(np.full(count, np.nan), np.full(count, np.nan), 0, 0.0)
    top1 = [choice.top1 for choice in controller.choices.choices]
    while True:
        decision = controller.next(now)
        if decision is not None and decision.stitch is not None:
            seconds = clock.seconds(decision.stitch, len(decision.batch))
            busy, until = busy + seconds, now + seconds
            ids: Any = [request.id for request in decision.batch]
            answers.moment[ids], answers.top1[ids] = until, top1[decision.choice]
        elif at < count:
            until = max(now, arrived[at])
        else:
            break
        while at < count and arrived[at] <= until:
            refused += not controller.submit(Request(at, due[at]), arrived[at])
            at += 1
        if progress is not None and (at - reported >= _REPORT_EVERY or at == count > reported):
            progress(at - reported)
            reported = at
        now = until
        if decision is not None and decision.stitch is not None:
            controller.done(now)
    answers.refused, answers.busy = refused, busy
    return answers


def _outcome(arrived: np.ndarray, due: np.ndarray, answers: _AnswerTimes) -> Outcome:
    count, answered = len(arrived), ~np.isnan(answers.moment)
    in_time = answered & (answers.moment <= due + 1e-9)  # tolerance for sums of floating-point numbers
    latency = 1000 * (answers.moment - arrived)[answered]
    p50, p99 = np.percentile(latency, (50, 99)) if len(latency) else (math.nan, math.nan)
    total = float(answers.top1[in_time].sum())
    end = max(float(arrived[-1]), float(answers.moment[answered].max(initial=0.0))) - float(arrived[0])
    return Outcome(
        requests=count,
        attainment=100 * int(in_time.sum()) / count,
        accuracy=total / int(in_time.sum()) if in_time.any() else math.nan,
        effective=total / count,
        refused=answers.refused,
        dropped=count - int(answered.sum()) - answers.refused,
        late=int((answered & ~in_time).sum()),
        mean=float(latency.mean()) if len(latency) else math.nan,
        p50=float(p50),
        p99=float(p99),
        utilization=100 * answers.busy / end if end > 0 else 100.0,
    )
