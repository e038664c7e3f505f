from __future__ import annotations

import random

import pytest
import torch

from snnet.serve.http.reply_reserve import ReplyReserve
from snnet.serve.service.demand import Demand
from snnet.serve.service.refusal import Refusal
from tests.helpers.served import running


def test_it_covers_all_but_a_few_of_the_times_that_were_seen():
    draw, reserve = random.Random(0), ReplyReserve()
    times = [draw.expovariate(1000) for _ in range(2000)]
    for seconds in times:
        reserve.learn(seconds)
    covered = sum(seconds <= reserve.within(60) for seconds in times) / len(times)
    assert 0.85 <= covered <= 0.99
    assert reserve.within(0.001) == 0.00025


def test_a_batch_that_would_end_within_the_reserve_is_refused():
    with running() as service:
        served, demand, now = service.net(None), Demand(10_000), service.clock()
        image = torch.zeros(served.input_size)
        assert service.submit(served, [image], demand, now)[0].result(10)
        with pytest.raises(Refusal, match='cannot be met now'):
            service.submit(served, [image], demand, now, reserve=10 - served.choices.fast[0][1] / 2)
        with pytest.raises(Refusal, match='cannot be met now'):
            service.check(served, demand, now, reserve=10 - served.choices.fast[0][1] / 2)
