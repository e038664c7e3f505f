from __future__ import annotations

import math
import random
from itertools import product

import pytest
from hypothesis import given, settings, strategies as st

from snnet.serve import Choice, Choices, Controller, Request, controller, schedule
from snnet.serve.drop_lost import lost_requests
from snnet.serve.waiting_queue import WaitingQueue
from tests.serve.straightforward import StraightforwardController


def family(count: int = 9, most: int = 8, batch: float = 1.0, spread: float = 0.0) -> Choices:
    """Stitches that take 1 to `count` seconds per image and `batch` seconds per batch."""
    return Choices(
        Choice(i, 60.0 + i, (0.0, *(batch + (i + 1) * size for size in range(1, most + 1))), spread)
        for i in range(count)
    )


def decisions(
    ways: Controller | StraightforwardController, stream: list[tuple[float, float, float]], noise: float
) -> list[object]:
    """Everything that a controller decides about a stream of (arrival, time to deadline, least accuracy)."""
    draws, now, at, seen = random.Random(1), 0.0, 0, []
    while True:
        decision = ways.next(now)
        runs = decision is not None and decision.stitch is not None
        seen.append(decision)
        if runs:
            until = now + decision.seconds * math.exp(noise * draws.gauss(0, 1))
        elif at < len(stream):
            until = max(now, stream[at][0])
        else:
            return seen
        while at < len(stream) and stream[at][0] <= until:
            arrival, left, least = stream[at]
            seen.append(ways.submit(Request(at, arrival + left, least), arrival))
            at += 1
        now = until
        if runs:
            ways.done(now)


def stream(seed: int, count: int, rate: float, deadline: float, apart: bool, leasts: tuple[float, ...]):
    draws, now, found = random.Random(seed), 0.0, []
    for _ in range(count):
        now += draws.expovariate(rate)
        found.append((now, deadline * (draws.uniform(0.1, 2) if apart else 1.0), draws.choice(leasts)))
    return found


@pytest.mark.slow  # a second
@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.3, 1.0, 3.0]),
    st.sampled_from([5.0, 20.0, 60.0]),
    st.booleans(),
    st.sampled_from([(0.0,), (0.0, 0.0, 62.0), (63.0,)]),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from([0.2, 6.0]),
)
def test_a_queue_that_is_judged_exactly_gets_the_decisions_of_the_straightforward_way(
    seed, load, deadline, apart, leasts, noise, batch
):
    choices = family(batch=batch, spread=noise)
    found = stream(seed, 80, load * choices.capacity, deadline, apart, leasts)
    assert decisions(Controller(choices), found, noise) == decisions(StraightforwardController(choices), found, noise)


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('apart', [False, True])
@pytest.mark.parametrize('load', [0.8, 3.0])
def test_long_queues_answer_as_many_as_the_straightforward_way(load, apart):
    """In sum: one decision that differs changes all that follow, for better or for worse."""
    answered = {Controller: 0, StraightforwardController: 0}
    for seed, leasts, noise in product((3, 4, 5, 6), ((0.0,), (*[0.0] * 9, 62.0)), (0.0, 0.2)):
        choices = family(spread=noise)
        found = stream(seed, 500, load * choices.capacity, 200.0, apart, leasts)
        for way in answered:
            seen = decisions(way(choices), found, noise)
            answered[way] += sum(len(it.batch) for it in seen if isinstance(it, controller.Decision))
    assert answered[Controller] >= 0.99 * answered[StraightforwardController]


def waiting(choices, deadlines, floors):
    least = [choices.choices[floor].top1 for floor in floors]
    return WaitingQueue.of(choices, map(Request, range(len(least)), deadlines, least))


def drawn(seed, count, looseness, kinds):
    """A backlog, and its latest starts by the programme that looks at every batch."""
    draws, choices = random.Random(seed), family(5)
    deadlines = tuple(sorted(looseness * draws.uniform(0, 1.2 * count) + 3 for _ in range(count)))
    floors = tuple(draws.choice(kinds) for _ in range(count))
    found = waiting(choices, deadlines, floors).seen_from(choices, 0.0, 1.0)
    return found, schedule.latest_starts(choices.fast, found.slack(), floors)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**6), st.integers(1, 200), st.floats(0.8, 1.5), st.sampled_from([(0,), (3,), (0, 0, 0, 0, 2)]))
def test_what_is_said_to_be_in_time_is(seed, count, looseness, kinds):
    """Whatever full batches show, the programme that looks at every batch finds too."""
    found, exact = drawn(seed, count, looseness, kinds)
    if found.can_start():
        assert exact[0] >= 0
    elif found.is_short():
        assert exact[0] < 0
    assert all(
        ours <= best + 1e-6 for ours, best in zip(found.latest_starts(), exact[: found.choices.most + 1], strict=False)
    )


class Counted(tuple):
    """A row of times that counts how often it is looked at."""

    looks = 0

    def __getitem__(self, index):
        Counted.looks += 1
        return super().__getitem__(index)


def looks(pattern: str, count: int, action: str) -> int:
    """How many batch times one decision looks at while `count` requests wait."""
    choices = family(20, most=16)
    step = choices.fast[0][16] / 16
    tightness = {'loose': 2.0, 'burst': 2.0, 'tight': 1.001, 'mixed': 2.5, 'late': 0.9, 'hopeless': 3.0}[pattern]
    floors = tuple(10 if pattern == 'mixed' and i % 10 == 3 else 0 for i in range(count))
    if pattern == 'hopeless':  # as many accuracies as there are stitches, and a third of the time
        floors = tuple(7 * i % 20 for i in range(count))
    deadlines = [tightness * step * (i + 17) for i in range(count)]
    if pattern == 'burst':
        deadlines = [deadlines[-1]] * count
    queue = waiting(choices, deadlines, floors)
    way = Controller(choices)
    way.state = controller.replace(way.state, now=0.0, queue=queue, load=way.state.load.seen(0.0, deadlines[-1]))
    for name in ('fast', 'rows'):
        setattr(choices, name, tuple(Counted(row) for row in getattr(choices, name)))
    Counted.looks = 0
    if action == 'next':
        assert way.next(0.0) is not None
    else:
        way.submit(Request('new', {'urgent': 18.0, 'last': deadlines[-1] + 1}[action]), 0.0)
    return Counted.looks


@pytest.mark.parametrize('action', ['last', 'urgent', 'next'])
@pytest.mark.parametrize('pattern', ['loose', 'burst', 'tight', 'mixed', 'late', 'hopeless'])
def test_a_decision_looks_at_no_more_batches_when_more_requests_wait(pattern, action):
    assert looks(pattern, 10_000, action) <= 1.5 * max(looks(pattern, 300, action), 1000)


@pytest.mark.parametrize('floors', [(0,), (4,), tuple(range(9))], ids=['fastest', 'accurate', 'all'])
@pytest.mark.parametrize('apart', [False, True])
@pytest.mark.parametrize('late', [0.1, 0.4])
def test_a_long_queue_that_cannot_be_answered_drops_hardly_more_than_the_straightforward_way(late, apart, floors):
    draws, choices, count = random.Random(1), family(), 200
    kinds = [draws.choice(floors) for _ in range(count)]
    work, deadlines = 0.0, []
    for kind in kinds:
        work += choices.fast[kind][8] / 8
        deadlines.append((draws.uniform(0.5, 1.5) if apart else 1.0) * (work + 20))
    deadlines = sorted(deadline - late * work for deadline in deadlines)
    queue = waiting(choices, deadlines, kinds)
    ours, theirs = Controller(choices), StraightforwardController(choices)
    for way in (ours, theirs):
        way.state = controller.replace(way.state, now=0.0, queue=queue, load=way.state.load.seen(0.0, deadlines[-1]))
    dropped, needed = (len(way.next(0.0).dropped) for way in (ours, theirs))
    assert 0 < dropped <= needed + 0.02 * count


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 60), st.floats(0.2, 1.5), st.sampled_from([(0,), (0, 0, 0, 2), range(5)]))
def test_what_is_found_too_late_early_is_too_late(seed, count, looseness, kinds):
    """Looking no further where nothing can be in time any more changes no start that is in time, and no end."""
    found, whole = drawn(seed, count, looseness, kinds)
    fast, slack, floors = found.choices.fast, found.slack(), found.floors
    early = schedule.latest_starts(fast, slack, floors, least=0.0)
    assert [start if start >= 0 else None for start in early] == [start if start >= 0 else None for start in whole]
    ends = schedule.finishes(fast, slack, floors)
    assert len(ends) == count + 1 or ends[-1] == math.inf
    assert (ends[-1] < math.inf) == (whole[0] >= 0)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6), st.integers(81, 200), st.floats(0.3, 1.2), st.sampled_from([(0,), (0, 0, 0, 2), range(5)])
)
def test_what_a_long_queue_keeps_is_in_time(seed, count, looseness, kinds):
    found, _ = drawn(seed, count, looseness, kinds)
    lost, _, starts = lost_requests(found)
    kept = [i for i in range(count) if i not in lost]
    slack = found.slack()
    best = schedule.latest_starts(found.choices.fast, [slack[i] for i in kept], [found.floors[i] for i in kept])
    assert best[0] + 1e-6 >= starts[0] >= 0
    assert all(ours <= there + 1e-6 for ours, there in zip(starts, best, strict=False))
