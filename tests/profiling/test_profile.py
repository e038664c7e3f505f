from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import snnet
from snnet import (
    Anchor,
    ForeignTable,
    LatencyTable,
    SnnetError,
    Stage,
    StitchableNet,
)
from snnet.cli.profile import ProfileSettings, run
from snnet.config.parse import parse
from snnet.profiling import stopwatch as measure
from snnet.profiling.memory import own_bytes, peak_memory
from snnet.profiling.profile import PROBES, profile
from snnet.profiling.stopwatch import LEAST_VISITS, MOST_VISITS, StopWatch
from tests.helpers.families import FAMILIES, images, shared_net, three_vits

CPU = torch.device('cpu')


class Clock:
    """A clock that stands still but for what hooks add to it."""

    def __init__(self):
        self.now, self.noise = 0.0, lambda: 1.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter

    def cost(self, module, ms):
        """Lets each run of a module take some milliseconds."""
        return module.register_forward_hook(lambda *_: setattr(self, 'now', self.now + self.noise() * ms / 1e3))


@pytest.fixture(scope='module')
def made():
    return three_vits(nearest=False)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measure, 'time', clock)
    return clock


@pytest.fixture
def net(made, clock):
    """57 stitches whose parts take known times: by the fake clock."""
    net = copy.deepcopy(made)
    for i, width in enumerate((16, 24, 32)):
        model = net.anchor(i).model
        clock.cost(model.patch_embed, 0.1 * width)
        clock.cost(model.head, 0.01 * width)
        for block in model.blocks:
            clock.cost(block, width)
    for layer in net.stitch_layers:
        clock.cost(layer, layer.in_features * layer.out_features / 100)
    return net


def true_ms(net, clock, stitch):
    begin = clock.now
    with torch.inference_mode():
        net(images(32), stitch=stitch)
    return 1e3 * (clock.now - begin)


def visits(monkeypatch, stop=None, killed=False):
    """The names whose calls are visited from now on; an interrupt comes in place of visit number `stop`."""
    seen, visit = [], StopWatch._visit

    def counted(self, call):
        if stop is not None and len(seen) == stop:
            if killed:
                monkeypatch.setattr(StopWatch, 'save', lambda self: None)
            raise KeyboardInterrupt
        seen.append(call)
        return visit(self, call)

    monkeypatch.setattr(StopWatch, '_visit', counted)
    return seen


def evaluated(net):
    net.records = [replace(r, top1=60 + r.flops / 1e6 + (r.stitch * 7 % 5) / 3) for r in net.records]
    return net


@pytest.mark.slow  # a few seconds
def test_all_measured_medians_are_those_of_the_clock(net, clock):
    (table,) = profile(net, stitches='all', quiet=True)
    assert table.measured == set(range(57))
    assert table.error is None
    for i in (0, 2, 9, 56):
        row = table.rows[i]
        assert (row.low, row.ms, row.high) == pytest.approx((true_ms(net, clock, i),) * 3)
    assert net.latency_tables == (table,)
    assert [record.latency_ms for record in net.records] == [table.rows[i].ms for i in range(57)]


def test_quantiles_are_those_of_single_calls(net, clock):
    draw = torch.Generator().manual_seed(0)
    clock.noise = lambda: 1 + 0.2 * float(torch.rand((), generator=draw))
    row = profile(net, stitches=[5], predict=False, quiet=True)[0].rows[5]
    alone = true_ms(net, clock, 5)
    assert 0.8 * alone < row.low < row.ms < row.high < 1.2 * alone


@pytest.mark.slow  # a few seconds
def test_what_is_predicted_is_off_by_no_more_than_is_said(net, clock):
    draw = torch.Generator().manual_seed(0)
    clock.noise = lambda: 1 + 0.01 * float(torch.rand((), generator=draw))
    (table,) = profile(net, stitches='frontier', quiet=True)
    assert {0, 1, 2} <= table.measured
    assert len(table.measured) == 3 + PROBES
    assert table.rows.keys() == set(range(57))
    clock.noise = lambda: 1.005
    errors = [abs(row.ms / true_ms(net, clock, i) - 1) for i, row in table.rows.items() if row.predicted]
    assert 0 < table.error['mean'] < table.error['largest'] < 0.02
    assert max(errors) < 0.01


@pytest.mark.slow  # a few seconds
def test_predictions_find_what_parts_take_only_within_a_stitch(net, clock):
    """Blocks of the largest anchor take twice as long behind other parts as by themselves."""
    last = [None]
    net.register_forward_pre_hook(lambda *_: last.__setitem__(0, 'inside'))
    net.register_forward_hook(lambda *_: last.__setitem__(0, None))
    for block in net.anchor(2).model.blocks:
        block.register_forward_hook(lambda *_: setattr(clock, 'now', clock.now + (0.032 if last[0] else 0)))
    (table,) = profile(net, stitches='frontier', quiet=True)
    errors = [abs(row.ms / true_ms(net, clock, i) - 1) for i, row in table.rows.items() if row.predicted]
    assert max(errors) < 0.02


@pytest.mark.slow  # a few seconds
def test_the_frontier_over_latency_is_measured_whole(net, clock):
    """A layer that is dear by the clock alone moves the frontier away from that over FLOPs."""
    evaluated(net)
    clock.cost(net.stitch_layers[0], 80)
    (table,) = profile(net, stitches='frontier', quiet=True)
    special = {record.stitch for cost in ('flops', 'params', 'latency_ms', 'memory') for record in net.frontier(cost)}
    assert special | {0, 1, 2} <= table.measured < set(range(57))


@pytest.mark.slow  # a few seconds
def test_without_prediction_the_others_are_left_out(net):
    evaluated(net)
    expected = {r.stitch for cost in ('flops', 'params') for r in net.frontier(cost)} | {0, 1, 2}
    assert profile(net, stitches='frontier', predict=False, quiet=True)[0].rows.keys() == expected
    assert profile(net, stitches=[7, 3], predict=False, quiet=True)[0].rows.keys() == {3, 7}
    assert {3, 7} <= profile(net, stitches=[7, 3], quiet=True)[0].measured


@pytest.mark.slow  # seconds
def test_minutes_bound_the_run(net, clock, caplog):
    """One visit of 57 stitches takes longer than the limit: each is measured once, and none twice."""
    started = clock.now
    (table,) = profile(net, stitches='all', minutes=1e-3, quiet=True)
    rounds = (clock.now - started) / sum(true_ms(net, clock, i) / 1e3 for i in range(57))
    assert table.measured == set(range(57))
    assert rounds < 10  # three first calls, one before the rounds, one visit of at most six
    assert '57 of 57 latencies are less precise than usual' in caplog.text


@pytest.mark.slow  # seconds
@pytest.mark.parametrize(('minutes', 'all_of_them'), [(0.0, False), (1e6, True)])
def test_auto_measures_all_where_time_allows(net, minutes, all_of_them):
    (table,) = profile(net, minutes=minutes, quiet=True)
    assert table.rows.keys() == set(range(57))
    assert (len(table.measured) == 57) == all_of_them


@pytest.mark.slow  # a few seconds
def test_a_finished_table_is_loaded_with_the_net_and_not_measured_again(made, tmp_path, monkeypatch):
    net = copy.deepcopy(made)
    net.save_pretrained(tmp_path)
    tables = profile(net, batches=[1, 3], stitches=[4], predict=False, folder=tmp_path, quiet=True)
    assert {path.name for path in (tmp_path / 'profiles').iterdir()} == {table.file_name for table in tables}
    loaded = StitchableNet.from_pretrained(tmp_path)
    assert sorted(loaded.latency_tables, key=lambda t: t.batch) == tables
    assert loaded.choose(latency_ms=1e9, batch=2).record.stitch == 4
    seen = visits(monkeypatch)
    assert profile(loaded, batches=[1, 3], stitches=[4], predict=False, folder=tmp_path, quiet=True) == tables
    assert seen == []
    (more,) = profile(loaded, batches=[3], stitches=[4, 6], predict=False, folder=tmp_path, quiet=True)
    assert more.rows.keys() == {4, 6}
    assert more.rows[4] == tables[1].rows[4]
    assert len(seen) <= MOST_VISITS
    seen.clear()
    profile(loaded, batches=[3], stitches=[4], predict=False, folder=tmp_path, quiet=True, overwrite=True)
    assert len(seen) >= LEAST_VISITS


@pytest.mark.slow  # seconds
@pytest.mark.parametrize(
    ('options', 'killed'), [({'stitches': 'frontier'}, False), ({'stitches': [3, 7, 9], 'predict': False}, True)]
)
def test_a_stopped_profile_goes_on_where_it_was_and_is_no_table_before(net, tmp_path, monkeypatch, options, killed):
    net.save_pretrained(tmp_path)
    if killed:
        monkeypatch.setattr(measure, '_SAVE_SECONDS', -1)  # what is not saved in time is lost
    with monkeypatch.context() as patch:
        whole = visits(patch)
        expected = profile(net, **options, quiet=True)[0]
    with monkeypatch.context() as patch:
        first = visits(patch, len(whole) // 2, killed)
        with pytest.raises(KeyboardInterrupt):
            profile(net, **options, folder=tmp_path, quiet=True)
    assert [path.suffix for path in (tmp_path / 'profiles').iterdir()] == ['.partial']
    assert StitchableNet.from_pretrained(tmp_path).latency_tables == ()
    with monkeypatch.context() as patch:
        second = visits(patch)
        (found,) = profile(net, **options, folder=tmp_path, quiet=True)
    assert len(first) + len(second) == len(whole)
    assert found.measured == expected.measured
    assert {i: row.ms for i, row in found.rows.items()} == pytest.approx({i: r.ms for i, r in expected.rows.items()})
    assert [path.name for path in (tmp_path / 'profiles').iterdir()] == [found.file_name]


@pytest.mark.parametrize('content', [b'', b'{"facts": 3}', b'\xff', b'[]', None])
def test_a_damaged_or_foreign_beginning_is_measured_again(net, tmp_path, content):
    net.save_pretrained(tmp_path)
    (table,) = profile(net, stitches=[4], predict=False, folder=tmp_path, quiet=True)
    file = tmp_path / 'profiles' / table.file_name
    file.unlink()
    facts = {'facts': {'setup': 'another'}, 'visits': {'stitch 4': [[99.0]] * 9}, 'memory': {}, 'firsts': {}}
    file.with_suffix('.partial').write_bytes(json.dumps(facts).encode() if content is None else content)
    (again,) = profile(net, stitches=[4], predict=False, folder=tmp_path, quiet=True)
    assert again.rows.keys() == {4}
    assert again.rows[4].ms == pytest.approx(table.rows[4].ms)


def test_a_table_with_a_row_of_another_net_is_measured_again(net, tmp_path, caplog):
    net.save_pretrained(tmp_path)
    (table,) = profile(net, stitches=[4], predict=False, folder=tmp_path, quiet=True)
    foreign = replace(table, rows={99: table.rows[4]})
    (tmp_path / 'profiles' / table.file_name).write_text(foreign.to_json())
    (again,) = profile(net, stitches=[4], predict=False, folder=tmp_path, quiet=True)
    assert again.rows.keys() == {4}
    assert 'the table has a row for stitch 99, but this net has' in caplog.text


def test_a_table_of_earlier_weights_is_made_again(net, tmp_path, caplog):
    net.save_pretrained(tmp_path)
    (old,) = profile(net, stitches=[4], predict=False, folder=tmp_path, quiet=True)
    with torch.no_grad():
        net.layer(0).bias.add_(1)
    net.save_pretrained(tmp_path)
    assert StitchableNet.from_pretrained(tmp_path).latency_tables == ()
    assert 'other weights' in caplog.text
    with pytest.raises(ForeignTable):
        net.add_table(old)
    (new,) = profile(net, stitches=[4], predict=False, folder=tmp_path, quiet=True)
    assert new.weights != old.weights
    assert StitchableNet.from_pretrained(tmp_path).latency_tables == (new,)


@pytest.mark.slow  # seconds
def test_a_net_that_was_never_saved_has_tables_too(made):
    net = copy.deepcopy(made).train()
    (table,) = profile(net, stitches=[0, 5], predict=False, quiet=True)
    assert table.weights is None
    assert net.training
    assert net.anchor(0).model.blocks[0].training
    assert net.choose(latency_ms=table.rows[5].ms, params=10**9).record.stitch in (0, 5)


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'stitches': 'some'}, "'auto', 'all', 'frontier' or ids, not 'some'"),
        ({'stitches': [57]}, '0 to 56'),
        ({'batches': []}, 'at least 1'),
        ({'batches': [0]}, 'at least 1'),
        ({'batches': [True]}, 'at least 1'),
    ],
)
def test_what_cannot_be_measured_is_refused(made, options, said):
    with pytest.raises(SnnetError, match=said):
        profile(made, **options, quiet=True)


def test_a_stitch_that_does_not_run_is_named(net):
    def fail(*_):
        raise RuntimeError('not enough memory: you tried to allocate 9 TB')

    net.layer(0).register_forward_hook(fail)
    with pytest.raises(SnnetError, match=r'stitch 3 does not run with 2 images.*not enough memory'):
        profile(net, batches=[2], stitches='all', quiet=True)


def test_progress_counts_all_visits(net, clock, caplog):
    caplog.set_level('INFO', 'snnet')
    profile(net, stitches=[4], predict=False)
    assert f'{LEAST_VISITS}/{LEAST_VISITS} visits of stitches' in caplog.text


def watch_of(times, tmp_path):
    """A watch whose calls take the given milliseconds, one after another."""
    clock, left = Clock(), iter(times)
    call = lambda: setattr(clock, 'now', clock.now + next(left) / 1e3)  # noqa: E731
    return clock, call, StopWatch(CPU, None, {}, 0)


def test_a_steady_call_is_settled_soon_and_an_unsteady_one_in_the_end(tmp_path, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    counts = []
    for spread in (0.0, 0.05, 3.0):
        clock, call, watch = watch_of(iter(lambda s=spread: 1 + s * float(torch.rand((), generator=draw)), 0), tmp_path)
        monkeypatch.setattr(measure, 'time', clock)
        watch.time({'call': call}, SimpleNamespace(expect=lambda n: None, update=lambda *a: None))
        counts.append(len(watch.visits['call']))
    assert counts[0] == LEAST_VISITS
    assert LEAST_VISITS <= counts[1] < counts[2] == MOST_VISITS


def test_all_calls_are_visited_once_a_round_in_an_order_that_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, 'time', Clock())
    order = []
    watch = StopWatch(CPU, None, {}, 0)
    monkeypatch.setattr(watch, '_visit', lambda call: order.append(call()) or [1.0])
    watch.time(
        {str(i): (lambda i=i: i) for i in range(6)}, SimpleNamespace(expect=lambda n: None, update=lambda *a: None)
    )
    rounds = [order[at : at + 6] for at in range(0, len(order), 6)]
    assert len(rounds) == LEAST_VISITS
    assert all(sorted(row) == list(range(6)) for row in rounds)
    assert len({tuple(row) for row in rounds}) > LEAST_VISITS // 2


class Perceptron(Anchor):
    """Linear layers over 16 tokens: what it allocates is known to the byte."""

    layout = 'NLC'

    def stem(self, x):
        return self.model.embed(x.flatten(2).transpose(1, 2).contiguous())

    def stages(self):
        return [Stage(list(self.model.blocks))]

    def head(self, x):
        return self.model.head(x.mean(1))


def perceptron(name, width):
    model = nn.Module()
    model.embed, model.head, model.num_classes = nn.Linear(3, width), nn.Linear(width, 5), 5
    model.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
    model.blocks[1].register_buffer('table', torch.zeros(10, width))
    return Perceptron(model, name, (3, 4, 4))


@pytest.mark.parametrize('batch', [1, 4])
def test_memory_is_that_of_own_tensors_and_of_the_features_that_a_call_holds_at_once(batch):
    anchors = [perceptron('small', 8), perceptron('large', 32)]
    net = StitchableNet(anchors, snnet.list_stitches(anchors))
    (table,) = profile(net, batches=[batch], stitches='all', quiet=True)
    for i, stitch in enumerate(net.stitches):
        own = most = before = 0
        for number, leg in enumerate(stitch.legs):
            width = {'small': 8, 'large': 32}[leg.anchor]
            blocks = range(3)[leg.start : leg.stop]
            own += sum(width * width + width + (10 * width if block == 1 else 0) for block in blocks)
            own += width * before + width if number else 3 * width + width
            held = 16 * width if number and blocks else 0  # `forward` holds what the leg began with
            most = max(most, 16 * ((before or 3) + width))
            if blocks:
                most = max(most, 16 * 2 * width, held + 16 * 2 * width if len(blocks) > 1 else 0)
            before = width
        own += 5 * before + 5
        most = max(most, held + 16 * before + before + 5)
        assert table.rows[i].memory == 4 * (own + batch * most)


@pytest.mark.quick('vit', 'resnet', 'swin', 'levit', 'official', 'three legs')
@pytest.mark.parametrize('name', [*FAMILIES, 'three legs', 'maps to tokens', 'official'])
def test_own_bytes_are_those_of_the_extracted_stitch(name):
    net = shared_net(name)
    own = own_bytes(net)
    for i in range(0, len(net.stitches), 5):
        cut = net.extract(i)
        assert own(i) == sum(t.nbytes for t in (*cut.parameters(), *cut.buffers()))


def test_peak_memory_is_exact_and_repeats():
    x = torch.zeros(1000)
    assert [peak_memory(lambda: x.neg().exp(), CPU) for _ in range(3)] == [8000] * 3
    assert peak_memory(lambda: x.neg(), CPU) == 4000
    assert peak_memory(lambda: x[3:], CPU) == 0


@pytest.mark.slow  # seconds
def test_a_smaller_type_needs_less_memory(made):
    rows = []
    for kind in (torch.float32, torch.bfloat16):
        net = copy.deepcopy(made).to(kind)
        rows.append(profile(net, stitches=[9], predict=False, quiet=True)[0].rows[9].memory)
    assert rows[0] / 2 <= rows[1] < 0.7 * rows[0]


@pytest.mark.slow
def test_compiled_blocks_are_measured_without_compiling_again(made):
    net = snnet.compile_blocks(copy.deepcopy(made), 'eager')
    (table,) = profile(net, batches=[2], stitches=[0, 9], predict=False, quiet=True)
    assert table.setup.backend == 'compile'
    with torch.inference_mode(), torch.compiler.set_stance('fail_on_recompile'):
        net(images(32), stitch=20)
    torch._dynamo.reset()


def settings(folder, **changes):
    return ProfileSettings(folder=str(folder), **{'device': 'cpu', 'stitches': '0-2,5', 'predict': False, **changes})


@pytest.mark.slow  # seconds
def test_a_run_writes_what_from_pretrained_loads_and_prints_where(made, tmp_path, capsys, clock, monkeypatch):
    ticks = iter(range(10**9))
    monkeypatch.setattr(clock, 'perf_counter', lambda: 0.1 * next(ticks))
    made.save_pretrained(tmp_path)
    torch.set_num_threads(2)
    try:
        tables = run(settings(tmp_path, batch_sizes=[2, 1], dtype='bfloat16', threads=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    said = capsys.readouterr().out
    for table in tables:
        assert LatencyTable.read(tmp_path / 'profiles' / table.file_name) == table
        assert (table.setup.dtype, table.setup.threads) == ('bfloat16', 1)
        assert f'wrote {tmp_path / "profiles" / table.file_name}' in said
    assert 'w16[:]' in said
    assert len(StitchableNet.from_pretrained(tmp_path).latency_tables) == 2
    (mixed,) = run(settings(tmp_path, amp=True))
    assert mixed.setup.dtype == 'bfloat16 autocast'


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'dtype': 'int8'}, 'float32, bfloat16, float16'),
        ({'device': 'tpu'}, "no device 'tpu'"),
        ({'threads': 0}, 'at least 1'),
        ({'batch_sizes': []}, 'at least 1'),
        ({'amp': True, 'amp_dtype': 'int8'}, 'amp_dtype'),
        ({'stitches': '90'}, 'stitch ids'),
    ],
)
def test_bad_settings_are_refused(made, tmp_path, changes, said):
    made.save_pretrained(tmp_path)
    with pytest.raises(SnnetError, match=said):
        run(settings(tmp_path, **changes))


def test_settings_come_from_the_command_line():
    found = parse(ProfileSettings, ['net', '--batch-sizes', '1', '8', '--stitches', 'all'], positional='folder')
    assert (found.folder, found.batch_sizes, found.stitches) == ('net', [1, 8], 'all')
    with pytest.raises(SnnetError, match='batch_sizes'):
        parse(ProfileSettings, ['net', '--batch-sizes', '1.5'], positional='folder')
