"""A service in fast motion: the controller's own functions against arrivals, beside services that cannot adapt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import SnnetError
from ..utils.seeds import key
from .controller import Controller, Request
from .stitch_choices import Choice, Choices

_TOLD = 500
"""Requests between two words on progress."""
ATTAINMENT = 0.999
"""Share of requests that the best fixed network has to answer in time."""


@dataclass(frozen=True)
class World:
    """How the service differs from its tables.

    Attributes:
        factor: by which batches take longer than the tables say.
        spread: standard deviation of the logarithm of a batch's time; None takes that of the tables.
        seed: of the draws.
    """

    factor: float = 1.0
    spread: float | None = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf or not 0 <= (self.spread or 0.0) < math.inf:
            raise SnnetError(f'times need a factor above 0 and a spread from 0 on, not {self.factor} and {self.spread}')


@dataclass(frozen=True)
class Outcome:
    """What became of the requests.

    Attributes:
        requests: how many came.
        attainment: share answered in time, in percent.
        accuracy: mean top-1 of those answered in time, in percent.
        effective: mean top-1 of all, in percent, those not answered in time counting 0.
        refused: requests turned away at once.
        dropped: admitted ones given up before they ran.
        late: answered after their deadline.
        mean, p50, p99: milliseconds from arrival to answer of those answered.
        utilization: share of the time in which the worker ran, in percent.
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
        """As JSON can hold it."""
        return asdict(self)


def simulate(
    choices: Choices,
    moments: Sequence[float] | np.ndarray,
    deadlines: float | np.ndarray,
    world: World | None = None,
    progress: Callable[[int], object] | None = None,
) -> Outcome:
    """Runs a service with one worker until all is answered.

    Args:
        choices: what the controller may run.
        moments: of arrival, rising, in seconds.
        deadlines: seconds from arrival to deadline, of all or of each.
        world: how its times differ from the tables.
        progress: is told every now and then how many more requests have arrived.

    Raises:
        SnnetError: nothing arrives, or a deadline is no positive number.
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
    """The most accurate single network that answers 99.9 % in time, chosen with hindsight; the fastest if none does.

    It has the controller's batches, order and admission. Found by bisection: attainment falls as networks get slower.
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
    """How long batches really take: the tables' median, times a factor, times a lognormal draw for each batch."""

    def __init__(self, world: World, choices: Choices) -> None:
        self._spread = choices.spread if world.spread is None else world.spread
        self._factor, self._batches = world.factor, 0
        self._random = np.random.default_rng(key(world.seed, 'service times'))
        self._draws: list[float] = []
        self._rows = {choice.stitch: choice.seconds for choice in choices.choices}

    def seconds(self, stitch: int, size: int) -> float:
        """Of the next batch."""
        exact = self._factor * self._rows[stitch][size]
        if not self._spread:
            return exact
        if not self._draws:
            self._draws = np.exp(self._spread * self._random.standard_normal(4096)).tolist()
        return exact * self._draws.pop()


@dataclass
class _Answers:
    """What became of each request: the moment and accuracy of its answer, NaN where there is none."""

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
) -> _Answers:
    count, told, at, now, busy, refused = len(arrived), 0, 0, 0.0, 0.0, 0
    answers = _Answers(np.full(count, np.nan), np.full(count, np.nan), 0, 0.0)
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
        if progress is not None and (at - told >= _TOLD or at == count > told):
            progress(at - told)
            told = at
        now = until
        if decision is not None and decision.stitch is not None:
            controller.done(now)
    answers.refused, answers.busy = refused, busy
    return answers


def _outcome(arrived: np.ndarray, due: np.ndarray, answers: _Answers) -> Outcome:
    count, answered = len(arrived), ~np.isnan(answers.moment)
    in_time = answered & (answers.moment <= due + 1e-9)  # sums of floating-point numbers
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
