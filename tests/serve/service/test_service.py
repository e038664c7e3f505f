from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from snnet.errors import NoWeights, SnnetError
from snnet.serve.service.demand import Demand
from snnet.serve.service.measure_tables import _affordable, measure_tables
from snnet.serve.service.refusal import Refusal
from snnet.serve.service.service import Service, ServicePlan
from tests.helpers.served import PATIENT, running, tiny_net

PATIENTLY = Demand(20_000)


def images(count: int = 1) -> list[torch.Tensor]:
    return [*torch.randn(count, *tiny_net().input_size, generator=torch.Generator().manual_seed(0))]


def ask(service: Service, demand: Demand = PATIENTLY, count: int = 1):
    served = service.net(None)
    return [f.result(20) for f in service.submit(served, images(count), demand, service.clock())]


def test_answers_are_those_of_the_net():
    with running() as service:
        answers = ask(service, count=3)
        net = service.net('tiny').net
        for image, answer in zip(images(3), answers, strict=True):
            with torch.inference_mode():
                logits = net(image[None], stitch=answer.stitch)[0]
            torch.testing.assert_close(torch.from_numpy(answer.logits), logits, rtol=1e-4, atol=1e-5)


def test_a_request_may_name_its_stitch_or_a_limit_of_flops():
    with running() as service:
        served = service.net(None)
        assert {ask(service, Demand(20_000, stitch=stitch))[0].stitch for stitch in (0, 2, 5)} == {0, 2, 5}
        cheapest = min(record.flops for record in served.records)
        answer = ask(service, Demand(20_000, flops=1.2 * cheapest))[0]
        assert served.records[answer.stitch].flops <= 1.2 * cheapest


@pytest.mark.parametrize(
    ('demand', 'told'),
    [
        (Demand(1e-4), r'no stitch that may answer meets a deadline of 0.0001 ms: the fastest takes'),
        (Demand(50, min_top1=99.9), r'min_top1 is 99.9 %, .* the best stitch that may answer has'),
        (Demand(50, flops=10), r'at most 10 flops: the cheapest needs'),
        (Demand(50, stitch=1000), r'stitch ids are 0 to \d+, not 1000'),
        (Demand(61_000), 'deadline_ms is at most 60000'),
    ],
)
def test_what_can_never_be_answered_is_refused_in_a_sentence(demand, told):
    with running() as service, pytest.raises(Refusal, match=told) as caught:
        service.check(service.net(None), demand, service.clock())
    assert caught.value.reason == 'invalid'


@pytest.mark.parametrize(
    'values',
    [
        {'deadline_ms': 0}, {'deadline_ms': -1}, {'deadline_ms': float('nan')}, {'deadline_ms': float('inf')},
        {'min_top1': 101}, {'min_top1': float('nan')}, {'flops': 0}, {'flops': 1e9, 'stitch': 1},
    ],
)  # fmt: skip
def test_a_demand_that_makes_no_sense_is_refused(values):
    with pytest.raises(Refusal):
        Demand(**{'deadline_ms': 50, **values})


def test_a_request_that_came_too_late_is_refused_with_the_time_until_another_try():
    with running() as service, pytest.raises(Refusal, match='cannot be met now') as caught:
        service.submit(service.net(None), images(), PATIENTLY, service.clock() - 30)
    assert caught.value.reason == 'deadline'
    assert caught.value.retry_after >= 0


def test_before_the_start_and_after_the_end_requests_are_refused():
    service = Service([tiny_net()], PATIENT)
    with pytest.raises(Refusal, match='warming up'):
        service.check(service.net(None), PATIENTLY, service.clock())
    with running() as service:
        waiting = service.submit(service.net(None), images(), PATIENTLY, service.clock())
        service.drain()
        assert waiting[0].result(20).batch == 1
        with pytest.raises(Refusal, match='shutting down'):
            service.submit(service.net(None), images(), PATIENTLY, service.clock())


def test_a_net_that_was_never_evaluated_answers_with_anchors_and_promises_no_accuracy():
    with running(tiny_net(evaluated=False)) as service:
        served = service.net(None)
        answer = ask(service)[0]
        assert served.records[answer.stitch].anchor
        assert served.records[answer.stitch].top1 is None
        assert ask(service, Demand(20_000, stitch=4))[0].stitch == 4
        with pytest.raises(Refusal, match='no accuracy of net'):
            service.check(served, Demand(50, min_top1=1), service.clock())


def test_a_stitch_without_a_measured_time_gets_one_from_its_flops():
    served = tiny_net()
    table = served.tables[0]
    few = {stitch: row for stitch, row in table.rows.items() if stitch < 2}
    served.use_tables([replace(table, rows=few)])
    _, choices = served.queue_of(Demand(20_000, stitch=5))
    (choice,) = choices.choices
    assert choice.stitch == 5
    assert choice.seconds[1] == pytest.approx(served.records[5].flops / 1e8, rel=0.5)


def test_latencies_are_measured_where_no_table_holds():
    served = tiny_net(tables=False)
    tables = measure_tables(served, 2, 0.05)
    assert [table.batch for table in tables] == [1, 2]
    served.use_tables(tables)
    assert len(served.choices) >= 1
    served.net.known.tables.tables.clear()  # the net is shared by tests


def test_no_more_is_measured_than_the_time_allows():
    assert _affordable([*range(10)], [1, 2, 4], 1e-6, 10) == ([*range(10)], [1, 2, 4])
    stitches, batches = _affordable([*range(100)], [1, 2, 4, 8, 16], 0.05, 10)
    assert stitches[0] == 0
    assert stitches[-1] == 99
    assert 0.05 * 6 * len(stitches) * sum(batches) <= 10


def test_a_default_deadline_below_the_fastest_stitch_ends_the_start():
    service = Service([tiny_net()], ServicePlan(deadline_ms=1e-3))
    service._prepare = lambda served: None
    with pytest.raises(SnnetError, match=r'no stitch of .tiny. meets a deadline of 0.001 ms: the fastest takes'):
        service.start()
    assert (service.state, service.ready) == ('broken', False)


def test_a_reload_swaps_the_net_and_loses_no_request():
    def load(name, version):
        fresh = tiny_net()
        fresh.version = version
        return fresh

    with running(load=load) as service:
        old = service.net(None)
        before = [service.submit(old, images(), PATIENTLY, service.clock()) for _ in range(20)]
        fresh = service.reload('tiny')
        after = [service.submit(service.net(None), images(), PATIENTLY, service.clock()) for _ in range(20)]
        assert service.net('tiny') is fresh
        assert fresh.version == 2
        assert all(f.result(20).logits.shape == (7,) for futures in before + after for f in futures)


def test_a_reload_of_a_damaged_net_keeps_the_old_one():
    def damaged(name, version):
        raise NoWeights('model.safetensors does not have the SHA-256 that config.json says')

    with running(load=damaged) as service:
        old = service.net(None)
        with pytest.raises(NoWeights):
            service.reload('tiny')
        assert service.net('tiny') is old
        with pytest.raises(NoWeights):  # the reload before left no lock behind
            service.reload('tiny')
        with pytest.raises(Refusal, match="no net 'other'"):
            service.reload('other')


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_the_watch_replaces_a_dead_worker_without_being_asked():
    with running() as service:
        served = service.net(None)

        def dies(images, stitch):
            raise SystemExit

        served.run = dies
        with pytest.raises(Refusal, match='died'):
            ask(service)
        del served.run
        assert ask(service)[0].batch == 1
