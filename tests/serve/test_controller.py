from __future__ import annotations

import gc
import itertools
import math
import weakref
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from snnet.budget.latency_table import Latency, LatencyTable, Setup
from snnet.budget.record import Record
from snnet.errors import SnnetError
from snnet.serve import Choice, Choices, Controller, Request
from snnet.serve.recent_load import Load
from snnet.serve.schedule import finishes, latest_starts
from snnet.serve.time_correction import Timing

SETUP = Setup('cpu', 'toy', 1, '2.9', 'float32', 'eager')


def affine(stitch: int, top1: float, first: float, each: float, most: int = 4, spread: float = 0.0) -> Choice:
    """A stitch whose batch of b takes first + each x b seconds."""
    return Choice(stitch, top1, (0.0, *(first + each * size for size in range(1, most + 1))), spread)


THREE = Choices([affine(0, 70, 1, 1), affine(1, 75, 2, 2), affine(2, 80, 3, 5)])


def table(batch: int, ms: dict[int, float], setup: Setup = SETUP) -> LatencyTable:
    return LatencyTable(setup, batch, None, {i: Latency(value, value, value, 0) for i, value in ms.items()})


def records(*top1: float | None) -> list[Record]:
    return [Record(i, f'a{i}[:]', top1=value) for i, value in enumerate(top1)]


def serve(choices: Choices, requests: list[tuple[float, float, float]], slower: float = 1.0) -> dict[str, list]:
    """Runs (arrival, time to deadline, least accuracy) in the order of arrival; what happened, by name."""
    controller, now, at = Controller(choices), 0.0, 0
    seen: dict[str, list] = {'refused': [], 'dropped': [], 'answered': []}
    times = {choice.stitch: choice.seconds for choice in choices.choices}
    while True:
        decision = controller.next(now)
        if decision is not None:
            seen['dropped'] += [request.id for request in decision.dropped]
        runs = decision is not None and decision.stitch is not None
        if runs:
            until = now + slower * times[decision.stitch][len(decision.batch)]
            seen['answered'] += [(request, decision.stitch, until, len(decision.batch)) for request in decision.batch]
        elif at < len(requests):
            until = max(now, requests[at][0])
        else:
            return seen
        while at < len(requests) and requests[at][0] <= until:
            arrival, left, least = requests[at]
            if not controller.submit(Request(at, arrival + left, least), arrival):
                seen['refused'].append(at)
            at += 1
        now = until
        if runs:
            controller.done(now)


# choices


def test_time_between_two_batch_sizes_lies_on_the_line_and_below_the_smallest_is_that_of_the_smallest():
    found = Choices.of(records(70.0), [table(8, {0: 60.0}), table(2, {0: 30.0}), table(4, {0: 40.0})])
    assert found.choices[0].seconds == pytest.approx((0, 0.03, 0.03, 0.035, 0.04, 0.045, 0.05, 0.055, 0.06))
    assert found.most == 8


def test_time_never_falls_as_the_batch_grows():
    assert Choices.of(records(70.0), [table(1, {0: 50.0}), table(2, {0: 40.0})]).choices[0].seconds[1:] == (0.05, 0.05)


def test_a_stitch_without_accuracy_or_without_a_time_in_some_table_is_left_out():
    tables = [table(1, {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}), table(2, {0: 2.0, 1: 4.0, 3: 9.0})]
    assert [c.stitch for c in Choices.of(records(70.0, None, 75.0, math.nan), tables).choices] == [0]


def test_only_stitches_that_are_best_for_some_batch_size_stay():
    kept = Choices([affine(0, 70, 1, 1), affine(1, 69, 2, 1), affine(2, 71, 9, 0.1), affine(3, 72, 1, 3)])
    assert [c.stitch for c in kept.choices] == [0, 2, 3]


def test_a_table_of_a_batch_that_no_service_waits_for_is_left_out(caplog):
    found = Choices.of(records(70.0), [table(2, {0: 5.0}), table(10**9, {0: 6.0})])
    assert found.choices[0].seconds == (0.0, 0.005, 0.005)
    assert 'the table for batch 1,000,000,000 is not used: batches have at most 1,024 images' in caplog.text


@pytest.mark.parametrize(
    ('known', 'tables', 'told'),
    [
        (records(None), [table(1, {0: 1.0})], 'nothing to choose from'),
        (records(70.0), [], 'nothing to choose from'),
        (records(70.0), [table(1, {0: 1.0}), table(2, {0: 1.0}, replace(SETUP, dtype='bfloat16'))], 'several setups'),
        (records(70.0), [table(1, {0: 0.0})], 'cannot have been measured'),
        (records(70.0), [table(4, {0: 1.0}), table(4, {0: 2.0})], 'several tables are for batch 4'),
        (records(70.0), [table(10**9, {0: 1.0})], 'batch 1,000,000,000 is not used: .* and there is no other table'),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(known, tables, told):
    with pytest.raises(SnnetError, match=told):
        Choices.of(known, tables)


# schedules


def brute_force(times: list[float], slack: list[float]) -> bool:
    """Whether any order and any batches answer all in time from 0 on."""
    for order in itertools.permutations(range(len(slack))):
        for cuts in itertools.product((False, True), repeat=len(slack) - 1):
            end, at, good = 0.0, 0, True
            ends = [i + 1 for i, cut in enumerate(cuts) if cut] + [len(slack)]
            for stop in ends:
                size = stop - at
                end += times[size] if size < len(times) else math.inf
                good &= all(end <= slack[i] for i in order[at:stop])
                at = stop
            if good:
                return True
    return False


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4).map(sorted),
    st.lists(st.integers(1, 24), min_size=1, max_size=5).map(sorted),
)
def test_a_schedule_is_found_exactly_where_one_exists(times, slack):
    rows, floors = [[0, *times]], [0] * len(slack)
    possible = brute_force([0, *times], slack)
    assert (finishes(rows, slack, floors)[-1] < math.inf) == possible
    assert (latest_starts(rows, slack, floors)[0] >= 0) == possible


def test_the_latest_start_is_the_last_from_which_all_are_in_time():
    rows, slack, floors = [[0.0, 2.0, 3.0]], [4.0, 6.0, 7.0], [0, 0, 0]
    start = latest_starts(rows, slack, floors)[0]
    assert finishes(rows, [s - start for s in slack], floors)[-1] < math.inf
    assert finishes(rows, [s - start - 1e-6 for s in slack], floors)[-1] == math.inf


# decisions

requests = st.lists(
    st.tuples(st.floats(0, 40), st.floats(0.5, 40), st.sampled_from([0.0, 0.0, 75.0, 80.0])), max_size=40
).map(lambda found: sorted(found))


@pytest.mark.slow  # a second
@settings(deadline=None, max_examples=200)
@given(requests, st.sampled_from([0.0, 0.2]))
def test_no_admitted_request_is_late_or_given_up_when_batches_take_what_the_tables_say(found, spread):
    choices = Choices([affine(0, 70, 1, 1, spread=spread), affine(1, 75, 2, 2), affine(2, 80, 3, 5)])
    seen = serve(choices, found)
    top1 = {choice.stitch: choice.top1 for choice in choices.choices}
    assert seen['dropped'] == []
    assert sorted([*seen['refused'], *(request.id for request, *_ in seen['answered'])]) == list(range(len(found)))
    for request, stitch, until, size in seen['answered']:
        assert until <= request.deadline + 1e-6
        assert top1[stitch] >= request.least
        assert size <= choices.most
    assert serve(choices, found) == seen


def test_a_lone_request_gets_the_most_accurate_stitch_that_its_deadline_allows():
    for left, stitch in ((30.0, 2), (8.5, 2), (7.9, 1), (3.9, 0), (2.0, 0)):
        controller = Controller(THREE)
        calm = controller.state.load._replace(came=0.0, span=100.0, peaks=(0.0,) * 8)
        controller.state = replace(controller.state, load=calm)
        assert controller.submit(Request(0, left), 0.0)
        decision = controller.next(0.0)
        assert (decision.stitch, len(decision.batch)) == (stitch, 1), left


def test_what_even_the_fastest_stitch_cannot_answer_is_refused_at_once():
    controller = Controller(THREE)
    assert not controller.submit(Request('too soon', 1.99), 0.0)
    assert not controller.submit(Request('expired', -1.0), 0.0)
    assert not controller.submit(Request('nothing so accurate', 99.0, least=81.0), 0.0)
    assert controller.submit(Request('just', 2.0), 0.0)
    assert not controller.submit(Request('not besides', 2.0), 0.0)
    assert controller.next(0.0).batch == (Request('just', 2.0),)


def test_the_earliest_deadline_goes_first_whatever_came_first():
    controller = Controller(THREE)
    for name, deadline in (('late', 500.0), ('soon', 9.0), ('middle', 100.0)):
        assert controller.submit(Request(name, deadline), 0.0)
    order = []
    now = 0.0
    while (decision := controller.next(now)) is not None:
        order += [request.id for request in decision.batch]
        now += decision.seconds
        controller.done(now)
    assert order == ['soon', 'middle', 'late']


def test_a_worker_runs_one_batch_at_a_time_and_only_what_runs_can_be_done():
    controller = Controller(THREE)
    controller.submit(Request(0, 50.0), 0.0)
    assert controller.next(0.0) is not None
    controller.submit(Request(1, 60.0), 0.0)
    assert controller.next(0.5) is None
    controller.done(8.0)
    assert controller.next(8.0).batch[0].id == 1
    controller.done(20.0)
    with pytest.raises(SnnetError, match='no batch is running'):
        controller.done(21.0)


def test_a_clock_that_jumps_back_counts_as_standing_still():
    controller = Controller(THREE)
    controller.submit(Request(0, 120.0), 100.0)
    assert not controller.submit(Request(1, 52.0), 50.0)  # due long ago, by the clock that was seen
    assert controller.next(20.0) is not None
    controller.done(10.0)
    assert controller.state.now == 100.0
    assert controller.state.timing.factor == 1.0


@pytest.mark.parametrize(('deadline', 'now'), [(math.nan, 0.0), (math.inf, 0.0), (1.0, math.nan)])
def test_a_moment_that_is_no_number_is_told(deadline, now):
    with pytest.raises(SnnetError, match='no finite deadline'):
        Controller(THREE).submit(Request('x', deadline), now)


def test_accuracy_falls_at_once_as_the_load_rises_and_returns_after_it():
    """A deadline of 20 and one request every 40, then every 1.6, then every 40 again."""
    calm = [40.0 * i for i in range(30)]
    rush = [calm[-1] + 40 + 1.6 * i for i in range(300)]
    after = [rush[-1] + 40.0 * i for i in range(1, 40)]
    seen = serve(THREE, [(moment, 20.0, 0.0) for moment in (*calm, *rush, *after)])
    stitches = [stitch for _, stitch, _, _ in sorted(seen['answered'], key=lambda answer: answer[0].id)]
    assert seen['refused'] == []
    assert set(stitches[10:30]) == {2}
    assert max(stitches[60:320]) < 2
    assert set(stitches[-30:]) == {2}


def test_before_the_rate_is_known_nothing_is_spent():
    controller = Controller(THREE)
    assert controller.submit(Request(0, 500.0), 0.0)
    assert controller.next(0.0).stitch == 0


def test_a_flood_is_seen_long_before_a_deadline_has_passed():
    """After a calm a deadline of 1,000 long, twice as many come as can be answered: a tenth of it is enough to tell."""
    load = Load.expected(10.0, 1.0)
    for i in range(100):
        load = load.seen(40.0 * i, 1000.0)
    assert load.rate_at(4000.0) < 0.1
    for i in range(200):
        load = load.seen(4000.0 + 0.5 * i, 1000.0)
    assert load.rate_at(4100.0) > 1.0


def test_under_a_crowd_full_batches_keep_the_fastest_stitch_as_fast_as_it_can_be():
    """Batches of 1 answer 0.2 requests a second, of 8 1: admission must not let them fall apart."""
    choices = Choices([affine(0, 70, 4, 0.5, most=8), affine(1, 80, 8, 1, most=8)])
    found = [(i / 1.5, 24.0, 0.0) for i in range(1500)]  # one and a half times what can be answered
    seen = serve(choices, found)
    assert len(seen['answered']) > 0.97 * 1000


def test_a_batch_is_not_split_where_the_rest_would_take_longer_by_itself():
    """One alone takes 4, and the other two would take 4.5 at the rate of full batches, but take 8 by themselves."""
    controller = Controller(Choices([Choice(0, 70, (0.0, 4.0, 8.0, 8.6, 9.0))]))
    for number in range(3):
        assert controller.submit(Request(number, 60.0), 0.0)
    decision = controller.next(0.0)
    assert decision is not None
    assert len(decision.batch) == 3


# correction


def test_a_table_that_is_wrong_is_corrected_and_requests_are_in_time_again():
    found = [(12.0 * i, 30.0, 0.0) for i in range(400)]
    seen = serve(THREE, found, slower=2.5)
    late = [request.id for request, _, until, _ in seen['answered'] if until > request.deadline]
    assert not [i for i in (*late, *seen['refused'], *seen['dropped']) if i > 50]


def test_one_outlier_moves_the_correction_by_a_few_percent_only():
    timing = Timing.expected(3, 0.0).learned(1, 1000.0, 1.0)
    assert 1 < timing.factor < 1.1
    for _ in range(1000):
        timing = timing.learned(1, 1000.0, 1.0)
    assert timing.factor <= 4 + 1e-9


def test_a_choice_that_is_slower_than_its_table_is_told_apart_from_the_others():
    controller = Controller(THREE)
    timing = controller.state.timing
    for _ in range(400):
        for choice, truth in ((0, 1.0), (1, 1.0), (2, 2.0)):
            expected = timing.factor * math.exp(0.05 * timing.steps[choice])
            timing = timing.learned(choice, truth, expected)
    for choice, truth in ((0, 1.0), (1, 1.0), (2, 2.0)):
        assert timing.factor * math.exp(0.05 * timing.steps[choice]) == pytest.approx(truth, rel=0.1)


def test_only_a_few_corrected_tables_are_remembered_and_the_last_one_is():
    tables = [weakref.ref(THREE.corrected((steps, 0, 0))) for steps in range(1, 100)]
    gc.collect()
    assert sum(table() is not None for table in tables) <= 16
    assert THREE.corrected((99, 0, 0)) is tables[-1]()
    assert THREE.corrected((0, 0, 0)) is THREE
    assert THREE.corrected((2, 0, 0)).choices[0].seconds[1] == pytest.approx(2 * math.exp(0.1))


def test_measurements_that_are_none_teach_nothing():
    timing = Timing.expected(1, 0.0)
    assert timing.learned(0, 0.0, 1.0) == timing.learned(0, -1.0, 1.0) == timing.learned(0, math.nan, 1.0) == timing


def test_what_a_hiccup_has_made_impossible_is_given_up_and_the_rest_is_answered():
    controller = Controller(THREE)
    controller.submit(Request('first', 100.0), 0.0)
    controller.next(0.0)
    for name, deadline in (('lost', 20.0), ('saved', 60.0)):
        assert controller.submit(Request(name, deadline), 1.0)
    controller.done(40.0)
    decision = controller.next(40.0)
    assert [request.id for request in decision.dropped] == ['lost']
    assert [request.id for request in decision.batch] == ['saved']
