from __future__ import annotations

import math
import warnings
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, strategies as st

from snnet import BudgetInfeasible, InvalidBudget, Record, SnnetError, frontier, select
from snnet.budget.frontier import area, mixing_accuracy, reduce_frontier
from tests.helpers.families import three_vits

few = st.integers(1, 12)
accuracies = st.integers(0, 8).map(float)


def tables(top1):
    rows = st.lists(st.tuples(few, few, top1), min_size=1, max_size=12)
    return rows.map(lambda rows: [Record(i, f's{i}', flops=f, params=p, top1=a) for i, (f, p, a) in enumerate(rows)])


evaluated, unevaluated, mixed = tables(accuracies), tables(st.none()), tables(st.none() | accuracies)
limits = st.fixed_dictionaries({}, optional={'flops': few, 'params': few}).filter(bool)


def best(records, limits):
    """The plain search: walks the candidates by id and keeps what beats the best so far."""
    order = [name for name in ('flops', 'params') if name in limits] or ['flops']
    order += [name for name in ('flops', 'params') if name not in order]
    fitting = [r for r in records if all(getattr(r, name) <= limit for name, limit in limits.items())]
    known = [r for r in fitting if r.top1 is not None]
    chosen = None
    for r in known or fitting:
        cost = [getattr(r, name) for name in order]
        merit = (r.top1, *(-c for c in cost)) if known else (cost[0], *(-c for c in cost[1:]))
        if chosen is None or merit > chosen[0]:
            chosen = (merit, r, bool(known))
    return chosen and chosen[1:]


@given(records=mixed, limits=limits)
def test_the_choice_is_that_of_a_plain_search_and_never_exceeds_a_limit(records, limits):
    expected = best(records, limits)
    if expected is None:
        with pytest.raises(BudgetInfeasible):
            select(records, **limits)
        return
    chosen = select(records, **limits)
    assert (chosen.record, chosen.by_accuracy) == expected
    assert all(getattr(chosen.record, name) <= limit for name, limit in limits.items())


def outcome(records, flops, value):
    try:
        return value(select(records, flops=flops).record)
    except BudgetInfeasible:
        return -math.inf


@given(records=evaluated, small=few, more=few)
def test_a_larger_budget_never_gives_a_worse_accuracy(records, small, more):
    top1 = [outcome(records, budget, lambda r: r.top1) for budget in (small, small + more)]
    assert top1[0] <= top1[1]


@given(records=unevaluated, small=few, more=few)
def test_a_larger_budget_never_gives_a_cheaper_stitch_where_nothing_was_evaluated(records, small, more):
    cost = [outcome(records, budget, lambda r: r.flops) for budget in (small, small + more)]
    assert cost[0] <= cost[1]


@given(records=mixed, limits=limits, tight=st.floats(0.1, 0.9))
def test_what_is_said_to_be_feasible_is(records, limits, tight):
    name = min(limits)
    cheapest = min(getattr(r, name) for r in records)
    with pytest.raises(BudgetInfeasible) as caught:
        select(records, **{**limits, name: tight * cheapest})
    smallest = caught.value.smallest
    assert smallest.keys() == limits.keys()
    assert select(records, **smallest)
    if len(limits) == 1:
        assert smallest == {name: cheapest}


@given(records=mixed, cost=st.sampled_from(['flops', 'params']))
def test_the_frontier_is_what_no_other_record_beats(records, cost):
    def beats(a, b):
        at_least = getattr(a, cost) <= getattr(b, cost) and a.top1 >= b.top1
        better = getattr(a, cost) < getattr(b, cost) or a.top1 > b.top1 or a.stitch < b.stitch
        return at_least and better

    known = [r for r in records if r.top1 is not None]
    expected = [r for r in known if not any(beats(other, r) for other in known)]
    assert frontier(records, cost) == sorted(expected, key=lambda r: getattr(r, cost))


def test_ties_go_to_the_cheaper_and_then_to_the_lower_id():
    rows = [(5, 5, 80.0), (4, 9, 80.0), (4, 8, 80.0), (4, 8, 80.0), (1, 1, 70.0)]
    records = [Record(i, '', flops=f, params=p, top1=a) for i, (f, p, a) in enumerate(rows)]
    assert select(records, flops=9).record.stitch == 2
    assert select(records, params=9).record.stitch == 0
    blank = [replace(record, top1=None) for record in records]
    assert select(blank, flops=4.5).record.stitch == 2


BAD = [0, -1, -0.5, math.nan, math.inf, -math.inf, '3e9', '', True, False, [3], 3j, torch.tensor(3.0), np.array([3.0])]
BAD += [np.True_, np.float32('nan'), np.float32('inf'), Decimal('nan'), Decimal('sNaN'), Decimal('inf'), Decimal(-1)]


@pytest.mark.parametrize('bad', BAD, ids=repr)
def test_a_budget_that_is_no_positive_finite_number_is_a_typed_error(bad):
    records = [Record(0, 's', flops=1, params=1)]
    for limits in ({'flops': bad}, {'params': bad}, {'flops': 3.0, 'params': bad}):
        with pytest.raises(InvalidBudget, match='positive finite number'):
            select(records, **limits)


@pytest.mark.parametrize('limits', [{}, {'flops': None}, {'flops': None, 'params': None}])
def test_no_budget_at_all_is_a_typed_error(limits):
    with pytest.raises(InvalidBudget, match='no budget'):
        select([Record(0, 's', flops=1, params=1)], **limits)


@pytest.mark.parametrize(
    'good',
    [3, 3.5, np.float32(3), np.int64(3), Fraction(7, 2), Decimal('3.5'), 1e300, pytest.param(10**400, id='10**400')],
)
def test_any_real_positive_number_is_a_budget(good):
    assert select([Record(0, 's', flops=3), Record(1, 't', flops=2)], flops=good).record.stitch == 0


@given(
    cost=st.integers(1, 2**62),
    kind=st.sampled_from([np.float16, np.float32, np.float64, np.longdouble, Fraction, Decimal, float, int]),
    offset=st.integers(-3, 3),
)
@example(cost=2**53 + 1, kind=np.longdouble, offset=0)
def test_a_budget_of_any_type_is_never_exceeded_by_rounding(cost, kind, offset):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # float16 overflows
        limit = kind(max(cost + offset, 1))
    if kind is np.float16 and not np.isfinite(limit):
        return
    exact = Fraction(*limit.as_integer_ratio())
    assert bool(outcome([Record(0, 's', flops=cost)], limit, lambda r: True) is True) == (cost <= exact)
    assert bool(outcome([Record(0, 's', flops=cost, top1=1.0)], limit, lambda r: True) is True) == (cost <= exact)


def test_the_budget_of_a_net_is_not_exceeded_where_numpy_would_round():
    records = [Record(0, 's', flops=209_108_167), Record(1, 't', flops=209_108_160)]
    assert np.float32(209_108_160) >= 209_108_167  # so numpy says
    assert select(records, flops=np.float32(209_108_160)).record.stitch == 1


def test_limits_too_large_or_too_small_for_a_float_are_compared_all_the_same():
    records = [Record(0, 's', flops=30, params=20)]
    for huge in (10**400, Decimal('1e999999'), Fraction(10**400, 3)):
        assert select(records, flops=huge).record.stitch == 0
        with pytest.raises(BudgetInfeasible, match='params = 20'):
            select(records, flops=huge, params=1)
    for tiny in (Fraction(1, 10**400), Decimal('1e-999999'), 5e-324):
        with pytest.raises(BudgetInfeasible, match='times the budget'):
            select(records, flops=tiny)


@pytest.mark.parametrize('name', ['latency', 'top1', 'stitch'])
def test_a_limit_on_what_is_no_cost_is_a_typed_error(name):
    with pytest.raises(InvalidBudget, match=name):
        select([Record(0, 's', flops=1, params=1, top1=1.0)], **{name: 3.0})


def test_costs_that_were_not_measured_are_a_typed_error():
    with pytest.raises(InvalidBudget, match='measure_costs'):
        select([Record(0, 's', params=1), Record(1, 't', params=2)], flops=3.0)


def test_an_infeasible_budget_says_what_the_nearest_stitch_needs_and_by_how_much_it_missed():
    with pytest.raises(BudgetInfeasible, match=r'stitch 1 \(t\).*flops = 20.*2 times the budget') as caught:
        select([Record(0, 's', flops=30), Record(1, 't', flops=20)], flops=10)
    assert caught.value.smallest == {'flops': 20}


def test_mixing_two_anchors_is_a_straight_line_between_them():
    rows = [(10, 60.0, True), (15, 99.0, False), (20, 80.0, True), (40, 90.0, True), (50, None, True)]
    records = [Record(i, '', flops=f, top1=a, anchor=anchor) for i, (f, a, anchor) in enumerate(rows)]
    expected = {10: 60.0, 15: 70.0, 20: 80.0, 25: 82.5, 40: 90.0, 9: None, 45: None}
    assert {flops: mixing_accuracy(records, flops) for flops in expected} == expected
    assert mixing_accuracy(records[:2], 12) is None


@pytest.fixture(scope='module')
def net():
    return three_vits()


def test_the_net_activates_the_most_expensive_that_fits_and_warns_that_it_is_that(net):
    budget = net.records[1].flops
    with pytest.warns(UserWarning, match='most expensive one that fits'):
        chosen = net.select_for_budget(budget)
    assert net.active == chosen
    assert net.records[chosen].flops == max(r.flops for r in net.records if r.flops <= budget)


def test_the_net_activates_the_most_accurate_that_fits_without_a_warning(net):
    before = net.records
    net.records = [replace(r, top1=50.0 + r.stitch % 5) for r in before]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            chosen = net.select_for_budget(1e12, params=net.records[1].params)
        fits = [r for r in net.records if r.params <= net.records[1].params]
        assert net.records[chosen].top1 == max(r.top1 for r in fits)
        assert net.active == chosen
        assert net.frontier('params') == frontier(net.records, 'params') != []
    finally:
        net.records = before


@pytest.mark.parametrize(('limits', 'error'), [({'flops': 1.0}, BudgetInfeasible), ({}, InvalidBudget)])
def test_a_budget_that_fails_leaves_the_active_stitch(net, limits, error):
    net.set_stitch(5)
    with pytest.raises(error):
        net.select_for_budget(**limits)
    assert net.active == 5


def test_records_know_which_stitches_are_anchors(net):
    assert [r.stitch for r in net.records if r.anchor] == [0, 1, 2]


def test_an_accuracy_that_is_no_number_counts_as_unknown():
    known, unknown = Record(0, 'a', flops=1, params=1, top1=50.0), Record(1, 'b', flops=1, params=1, top1=float('nan'))
    assert select([unknown, known], flops=2).record == known
    assert frontier([unknown, known]) == [known]


def test_the_area_is_the_mean_of_the_best_accuracy_over_budgets_uniform_in_log_cost():
    rows = [(1, 60.0, True), (2, 50.0, False), (4, 70.0, False), (16, 80.0, True), (32, 99.0, False), (3, None, False)]
    records = [Record(i, f's{i}', flops=f, params=f, top1=a, anchor=x) for i, (f, a, x) in enumerate(rows)]
    budgets = [2 ** (4 * (i + 0.5) / 1000) for i in range(1000)]
    assert area(records) == pytest.approx(np.mean([select(records, flops=b).record.top1 for b in budgets]))
    assert area(records) == area(records, cost='params') == pytest.approx(65)


@given(records=mixed)
def test_the_area_lies_between_the_accuracies_and_grows_with_them(records):
    anchors = [replace(r, anchor=r.stitch < 2) for r in records]
    value = area(anchors)
    costs = {r.flops for r in anchors if r.anchor and r.top1 is not None}
    assert (value is None) == (len(costs) < 2)
    if value is not None:
        known = [r.top1 for r in anchors if r.top1 is not None]
        assert min(known) - 1e-9 <= value <= max(known) + 1e-9
        better = [replace(r, top1=None if r.top1 is None else r.top1 + 1) for r in anchors]
        assert area(better) == pytest.approx(value + 1)


def frontiers() -> list[list[Record]]:
    made = []
    for seed in range(20):
        draw = np.random.default_rng(seed)
        costs, accuracies = np.cumsum(draw.integers(1, 1000, 8)), np.cumsum(draw.uniform(0.01, 5, 8))
        made.append(
            [Record(i, '', int(c), top1=float(a)) for i, (c, a) in enumerate(zip(costs, accuracies, strict=True))]
        )
    return made


@pytest.mark.parametrize('points', [2, 3, 5, 7])
def test_no_other_choice_of_as_many_points_with_both_ends_is_better_over_all_budgets(points):
    def height(records: tuple[Record, ...]) -> float:
        return sum(a.top1 * math.log(b.flops / a.flops) for a, b in pairwise(records))

    for records in frontiers():
        choices = [(records[0], *inner, records[-1]) for inner in combinations(records[1:-1], points - 2)]
        chosen = tuple(reduce_frontier(records, points))
        assert chosen in choices
        assert height(chosen) == pytest.approx(max(map(height, choices)))


def test_a_frontier_without_more_points_stays_whole_and_fewer_than_its_ends_are_refused():
    records = frontiers()[0]
    assert reduce_frontier(records, 8) == reduce_frontier(records, 99) == records
    assert reduce_frontier([], 2) == []
    with pytest.raises(SnnetError, match='at least two points, .* but 1 was'):
        reduce_frontier(records, 1)


def test_a_cost_of_nothing_has_a_place_on_the_logarithmic_scale():
    records = [Record(i, f'a{i}[:]', memory=i, top1=50.0 + i, anchor=True) for i in range(4)]
    assert [record.stitch for record in reduce_frontier(records, 2, 'memory')] == [0, 3]
    assert 50.0 <= area(records, 'memory') <= 53.0
