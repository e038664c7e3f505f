from __future__ import annotations

import json
import math
import threading
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st

from snnet import (
    BudgetInfeasible,
    ForeignTable,
    InvalidBudget,
    Latency,
    LatencyTable,
    Record,
    Setup,
    SnnetError,
    StitchableNet,
    select,
)
from snnet.budget.read_tables import read_tables
from snnet.budget.record import COSTS
from snnet.budget.select import Chooser
from snnet.net.hardware import setup_of
from tests.helpers.families import family_net

SETUP = Setup('cpu', 'A processor (TM) @ 2 GHz', 1, '2.15.0+cpu', 'float32', 'eager')


def table(ms, setup=SETUP, batch=1, weights=None, memory=None):
    memory = memory or [100 + i for i in range(len(ms))]
    rows = {i: Latency(t, 0.9 * t, 1.2 * t, m) for i, (t, m) in enumerate(zip(ms, memory, strict=True))}
    return LatencyTable(setup, batch, weights, rows)


@pytest.fixture
def net():
    """A net of seven stitches whose accuracy grows with the id."""
    net = family_net('resnet')
    net.records = [replace(record, top1=50.0 + record.stitch) for record in net.records]
    return net


def own(net, ms, **changes):
    """A table that holds where the net runs."""
    return table(ms, **{'setup': setup_of(net), 'weights': net.fingerprint, **changes})


def test_a_table_comes_back_from_its_file(tmp_path):
    rows = {3: Latency(1.5, 1.0, 2.0, 77, True), 0: Latency(0.5, 0.25, 1.0, 5)}
    written = LatencyTable(SETUP, 8, 'abc', rows, {'mean': 0.01, 'largest': 0.02})
    (tmp_path / written.file_name).write_text(written.to_json())
    assert LatencyTable.read(tmp_path / written.file_name) == written
    assert written.measured == {0}
    assert '1 measured, 1 predicted' in str(written)


@given(
    st.lists(
        st.builds(
            Setup,
            st.sampled_from(['cpu', 'cuda']),
            st.sampled_from(['Xeon(R) CPU', 'NVIDIA H200', 'a/b\\c']),
            st.integers(1, 64),
            st.sampled_from(['2.9.0', '2.15.0+cpu']),
            st.sampled_from(['float32', 'bfloat16', 'bfloat16 autocast']),
            st.sampled_from(['eager', 'compile']),
        ),
        min_size=2,
        max_size=2,
        unique=True,
    )
)
def test_setups_and_batches_have_files_of_their_own(setups):
    names = {LatencyTable(setup, batch, None, {}).file_name for setup in setups for batch in (1, 8)}
    assert len(names) == 4
    assert not any(set(name) & set('/\\ ') for name in names)


def damaged():
    good = json.loads(replace(table([1.0, 2.0]), error={'mean': 0.1, 'largest': 0.2}).to_json())
    row = good['rows']['0']
    yield 'another format', {**good, 'format': 2}
    yield 'a list', [good]
    yield 'a number', 3
    yield 'text for a time', {**good, 'rows': {'0': {**row, 'ms': '1.0'}}}
    yield 'a time of zero', {**good, 'rows': {'0': {**row, 'ms': 0}}}
    yield 'a time that is not a number', {**good, 'rows': {'0': {**row, 'ms': float('nan')}}}
    yield 'an endless time', {**good, 'rows': {'0': {**row, 'high': float('inf')}}}
    yield 'no time', {**good, 'rows': {'0': {**row, 'ms': None}}}
    yield 'memory that is not an integer', {**good, 'rows': {'0': {**row, 'memory': 1.5}}}
    yield 'memory below zero', {**good, 'rows': {'0': {**row, 'memory': -1}}}
    yield 'a word for truth', {**good, 'rows': {'0': {**row, 'predicted': 'no'}}}
    yield 'a stitch without a number', {**good, 'rows': {'first': row}}
    yield 'a stitch below zero', {**good, 'rows': {'-1': row}}
    yield 'a stitch in two spellings', {**good, 'rows': {'0': row, '00': {**row, 'ms': 9.0}}}
    yield 'an unknown column', {**good, 'rows': {'0': {**row, 'energy': 3}}}
    yield 'rows in a list', {**good, 'rows': [row]}
    yield 'a batch of none', {**good, 'batch': 0}
    yield 'a batch of text', {**good, 'batch': '8'}
    yield 'weights that are a number', {**good, 'weights': 12}
    yield 'threads that are text', {**good, 'setup': {**good['setup'], 'threads': '1'}}
    yield 'a setup of nothing', {**good, 'setup': {}}
    yield 'an error that is text', {**good, 'error': {'mean': 'small'}}
    yield 'an error without its largest', {**good, 'error': {'mean': 0.1}}
    yield 'an error of another kind', {**good, 'error': {'mean': 0.1, 'largest': 0.2, 'least': 0.0}}
    yield 'an error without a name', {**good, 'error': [0.1]}
    for name in good:
        yield f'no {name}', {key: value for key, value in good.items() if key != name}


@pytest.mark.parametrize(('what', 'values'), [*damaged()], ids=lambda x: x if isinstance(x, str) else '')
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, what, values):
    path = tmp_path / 'table.json'
    path.write_text(json.dumps(values))
    with pytest.raises(SnnetError, match='table.json') as caught:
        LatencyTable.read(path)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('content', [b'', b'{"format": 1', b'\xff\xfe\x00', b'[' * 20])
def test_a_file_that_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / 'table.json'
    path.write_bytes(content)
    with pytest.raises(SnnetError, match='is not a valid latency table|is damaged'):
        LatencyTable.read(path)
    with pytest.raises(SnnetError, match='cannot be read'):
        LatencyTable.read(tmp_path / 'none.json')


def test_of_two_files_for_one_batch_size_that_of_profile_counts(tmp_path, caplog):
    ours, copied = table([1.0, 2.0]), table([7.0, 8.0])
    (tmp_path / ours.file_name).write_text(ours.to_json())
    (tmp_path / 'a copy.json').write_text(copied.to_json())
    (tmp_path / 'foreign.json').write_text(table([1.0, 2.0, 3.0], batch=8).to_json())
    assert read_tables(tmp_path, 2) == {tmp_path / ours.file_name: ours}
    assert 'a copy.json is left out: it has the setup and the batch size of ' + ours.file_name in caplog.text
    assert 'foreign.json is left out: the table has a row for stitch 2, but this net has 2' in caplog.text
    assert read_tables(tmp_path / 'nowhere', 2) == {}


@pytest.mark.parametrize('row', [(math.nan, 1, 1, 0), (1, 0, 1, 0), (1, 1, math.inf, 0), ('1', 1, 1, 0), (1, 1, 1, -5)])
def test_a_table_made_by_hand_is_checked_before_a_net_uses_it(net, row):
    with pytest.raises(SnnetError, match='the table says that stitch 0 '):
        net.add_table(LatencyTable(setup_of(net), 1, net.fingerprint, {0: Latency(*row)}), force=True)
    assert net.latency_tables == ()


def test_a_net_chooses_by_latency_and_says_by_which_table(net):
    ms = [1.0, 9.0, 2.0, 3.0, 5.0, 4.0, 8.0]
    net.add_table(own(net, ms))
    assert [record.latency_ms for record in net.records] == ms
    chosen = net.choose(latency_ms=4.5)
    assert (chosen.record.stitch, chosen.by_accuracy) == (5, True)
    assert 'batch 1' in str(chosen)
    assert setup_of(net).hardware in chosen.source
    assert net.select_for_budget(latency_ms=3.5) == net.active == 3
    assert net.choose(latency_ms=9.5, memory=102.0).record.stitch == 2
    assert net.choose(flops=1e12).source == ''


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'device': 'cuda'}, 'device cuda, not cpu'),
        ({'hardware': 'Abacus'}, 'hardware Abacus, not'),
        ({'threads': 99}, 'threads 99, not 1'),
        ({'torch': '1.0'}, 'torch 1.0, not'),
        ({'dtype': 'bfloat16'}, 'dtype bfloat16, not float32'),
        ({'backend': 'compile'}, 'backend compile, not eager'),
    ],
)
def test_a_table_of_another_setup_is_refused_unless_forced(net, changes, said):
    foreign = own(net, [1.0] * 7, setup=replace(setup_of(net), **changes))
    net.add_table(foreign)
    assert net.latency_tables == (foreign,)
    assert {record.latency_ms for record in net.records} == {None}
    with pytest.raises(ForeignTable, match=said):
        net.choose(latency_ms=3.0)
    net.add_table(foreign, force=True)
    assert net.latency_tables == (foreign,)
    assert net.choose(latency_ms=3.0).record.stitch == 6


def test_a_table_of_other_weights_is_refused_unless_forced(net, tmp_path):
    made = own(net, [1.0] * 7, weights='0' * 64)
    with pytest.raises(ForeignTable, match='other weights'):
        net.add_table(made)
    assert net.latency_tables == ()
    net.add_table(made, force=True)
    assert net.choose(latency_ms=3.0).record.stitch == 6


def test_a_table_holds_for_the_net_that_was_saved_until_its_weights_change(net, tmp_path):
    net.records = [replace(record, latency_ms=None, memory=None) for record in net.records]
    anchors = [net.anchor(i) for i in (0, 1)]
    saved = StitchableNet(anchors, net.stitches)
    saved.known.note_saved(saved, 'a' * 64)
    made = own(saved, [1.0] * 7)
    assert made.weights == 'a' * 64
    saved.add_table(made)
    with torch.no_grad():
        next(saved.parameters()).add_(1)
    with pytest.raises(ForeignTable, match='other weights'):
        saved.add_table(made)


def test_a_table_of_more_stitches_than_the_net_has_is_refused_even_by_force(net):
    with pytest.raises(ForeignTable, match='stitch 7, but this net has 7'):
        net.add_table(own(net, [1.0] * 8), force=True)


def test_no_table_at_all_is_said(net):
    with pytest.raises(ForeignTable, match='none at all.*snnet profile'):
        net.choose(latency_ms=3.0)


def test_a_moved_or_converted_net_needs_a_table_of_its_own(net):
    net.add_table(own(net, [1.0] * 7))
    half = net.to(torch.bfloat16)
    with pytest.raises(ForeignTable, match='dtype float32, not bfloat16'):
        half.choose(latency_ms=3.0)
    assert {record.latency_ms for record in half.records} == {None}
    assert net.to(torch.float32).choose(latency_ms=3.0)


def test_mixed_precision_and_threads_need_tables_of_their_own(net):
    net.add_table(own(net, [1.0] * 7))
    with torch.autocast('cpu', torch.bfloat16):
        with pytest.raises(ForeignTable, match='dtype float32, not bfloat16 autocast'):
            net.choose(latency_ms=3.0)
        net.add_table(own(net, [2.0] * 7))
        assert net.choose(latency_ms=3.0)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.raises(ForeignTable, match='threads'):
            net.choose(latency_ms=3.0)
    finally:
        torch.set_num_threads(before)


def test_a_batch_is_answered_by_the_table_of_the_next_larger_one(net):
    for batch in (8, 1, 32):
        net.add_table(own(net, [batch * (1.0 + i) for i in range(7)], batch=batch))
    assert [net.table_for(batch).batch for batch in (1, 2, 8, 9, 32)] == [1, 8, 8, 32, 32]
    assert net.choose(latency_ms=24.0, batch=5).record.stitch == 2
    assert [record.latency_ms for record in net.records] == [1.0 + i for i in range(7)]
    with pytest.raises(ForeignTable, match='batch 33.*batch 32 has too few images'):
        net.choose(latency_ms=24.0, batch=33)
    for bad in (0, -1, 1.5, True, '8', None):
        with pytest.raises(InvalidBudget, match='number of images'):
            net.choose(latency_ms=24.0, batch=bad)


def test_a_table_takes_the_place_of_an_earlier_one_of_its_setup(net):
    net.add_table(own(net, [1.0] * 7))
    net.choose(latency_ms=1.5)
    net.add_table(own(net, [2.0] * 7))
    assert len(net.latency_tables) == 1
    with pytest.raises(BudgetInfeasible, match=r'latency_ms <= 1.5.*nearest.*1.33 times') as caught:
        net.choose(latency_ms=1.5)
    assert caught.value.smallest == {'latency_ms': 2.0}


def test_a_forced_table_stands_behind_that_of_the_own_setup(net):
    net.add_table(own(net, [9.0] * 7, setup=replace(setup_of(net), hardware='Abacus')), force=True)
    net.add_table(own(net, [1.0] * 7))
    assert net.choose(latency_ms=2.0)


def test_new_accuracies_change_the_choice_at_once(net):
    net.add_table(own(net, [1.0] * 7))
    assert net.choose(latency_ms=2.0).record.stitch == 6
    net.records[2] = replace(net.records[2], top1=99.0)
    assert net.choose(latency_ms=2.0).record.stitch == 2


def test_a_stitch_that_the_table_lacks_is_never_chosen_by_latency(net):
    whole = own(net, [1.0] * 7)
    net.add_table(replace(whole, rows={i: whole.rows[i] for i in (0, 3)}))
    assert net.choose(latency_ms=2.0).record.stitch == 3
    assert net.records[6].latency_ms is None


def test_without_accuracies_the_dearest_in_latency_is_chosen_with_a_warning(net):
    net.records = [replace(record, top1=None) for record in net.records]
    net.add_table(own(net, [1.0, 9.0, 2.0, 3.0, 5.0, 4.0, 8.0]))
    with pytest.warns(UserWarning, match='most expensive'):
        assert net.select_for_budget(latency_ms=6.0) == 4


@pytest.mark.slow
def test_many_threads_choose_what_one_chooses(net):
    for batch in (1, 4):
        net.add_table(own(net, [batch * (1.0 + i) for i in range(7)], batch=batch))
    asked = [{'latency_ms': 4.5 + k % 20, 'batch': 1 + k % 4, 'memory': 103.0 + k % 5} for k in range(200)]
    expected = [net.choose(**limits) for limits in asked]
    found, wrong = {}, []

    def work(number):
        try:
            fresh = [net.choose(**limits) for limits in asked[number:] + asked[:number]]
            found[number] = fresh[len(asked) - number :] + fresh[: len(asked) - number]
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(found[number] == expected for number in range(16))


few = st.integers(1, 8)
costs = {'flops': few, 'params': few, 'latency_ms': st.none() | few, 'memory': st.none() | few}
records = st.lists(
    st.fixed_dictionaries({**costs, 'top1': st.none() | st.integers(0, 5).map(float)}), min_size=1, max_size=14
).map(lambda rows: [Record(i, f's{i}', **row) for i, row in enumerate(rows)])
limits = st.fixed_dictionaries({}, optional=dict.fromkeys(COSTS, few)).filter(bool)


def plain_search(found, asked):
    """Walks all records and keeps what beats the best so far."""
    names = [name for name in COSTS if name in asked] + [name for name in COSTS if name not in asked]
    fitting = [r for r in found if all((getattr(r, n) or 99) <= limit for n, limit in asked.items())]
    known = [r for r in fitting if r.top1 is not None]
    best = None
    for r in known or fitting:
        cost = [getattr(r, name) or 99 for name in names]
        merit = (r.top1, *(-c for c in cost)) if known else (cost[0], *(-c for c in cost[1:]))
        if best is None or merit > best[0]:
            best = merit, r
    return best and (best[1], bool(known))


@pytest.mark.slow  # a second
@given(records, st.lists(limits, min_size=1, max_size=6))
def test_a_chooser_answers_any_budgets_one_after_another_as_a_plain_search_does(found, many):
    chooser = Chooser(found)
    for asked in many:
        unknown = [n for n in asked if all(getattr(r, n) is None for r in found)]
        expected = plain_search(found, asked)
        if unknown or expected is None:
            with pytest.raises(InvalidBudget if unknown else BudgetInfeasible):
                chooser.choose(**asked)
        else:
            chosen = chooser.choose(**asked)
            assert (chosen.record, chosen.by_accuracy) == expected


def test_a_budget_that_is_missed_by_little_is_told_with_all_its_digits():
    with pytest.raises(BudgetInfeasible, match='flops <= 209108160: the nearest, stitch 0 .*, has flops = 209108167'):
        select([Record(0, 'a[:]', flops=209108167)], flops=209108160)


@given(records, limits)
def test_what_is_infeasible_names_the_nearest_and_by_how_much_it_missed(found, asked):
    asked = {name: limit / 16 for name, limit in asked.items()}
    if any(all(getattr(r, n) is None for r in found) for n in asked):
        return
    with pytest.raises(BudgetInfeasible) as caught:
        select(found, **asked)
    if caught.value.smallest:
        misses = [
            max(getattr(r, n) / limit for n, limit in asked.items())
            for r in found
            if None not in [getattr(r, n) for n in asked]
        ]
        assert f'{min(misses):.3g} times the budget' in str(caught.value)
        assert select(found, **caught.value.smallest)


def test_no_warning_where_accuracy_decides(net):
    net.add_table(own(net, [1.0] * 7))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        net.select_for_budget(latency_ms=2.0)
