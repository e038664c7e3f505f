from __future__ import annotations

import math

from snnet.serve import Choices, Request
from snnet.serve.service.queue_set import QueueSet
from tests.serve.test_controller import affine

ONE_SECOND = Choices([affine(0, 70, 0, 1, most=1)])


def admitted(queues: QueueSet, queue: str, deadline: float, now: float = 0.0, count: int = 1) -> bool:
    return queues.submit(queue, ONE_SECOND, [Request(i, deadline) for i in range(count)], now)


def test_a_queue_alone_decides_as_its_controller_does():
    queues = QueueSet()
    assert admitted(queues, 'a', 1.0)
    assert not admitted(queues, 'a', 1.5)  # it would end at 2
    assert admitted(queues, 'a', 2.0)
    assert queues.waiting == 2
    assert queues.seconds_of_work(0.0) == 2.0


def test_work_that_waits_or_runs_elsewhere_counts_in_an_admission():
    queues = QueueSet()
    assert admitted(queues, 'a', 1.0)
    assert not admitted(queues, 'b', 1.5)
    assert admitted(queues, 'b', 2.0)
    assert queues.next(0.0).queue == 'a'
    assert not admitted(queues, 'b', 2.5, now=0.5)  # a runs until 1, and b until 2
    assert admitted(queues, 'c', 3.0, now=0.5)


def test_the_queue_whose_first_request_is_due_first_goes_first_and_one_batch_runs_at_a_time():
    queues = QueueSet()
    admitted(queues, 'late', 10.0)
    admitted(queues, 'soon', 5.0)
    assert queues.next(0.0).queue == 'soon'
    assert queues.next(0.0) is None
    queues.done(1.0)
    assert queues.next(1.0).queue == 'late'
    queues.done(2.0)
    assert queues.next(2.0) is None


def test_images_of_a_request_are_admitted_together_or_not_at_all():
    queues = QueueSet()
    assert not admitted(queues, 'a', 2.5, count=3)
    assert queues.waiting == 0
    assert admitted(queues, 'a', 3.5, count=3)
    assert queues.waiting == 3


def test_asking_admits_nothing():
    queues = QueueSet()
    for _ in range(3):
        assert queues.could_admit('a', ONE_SECOND, [Request(0, 1.0)], 0.0)
    assert not queues.could_admit('a', ONE_SECOND, [Request(0, 0.5)], 0.0)
    assert queues.waiting == 0


def test_a_wait_for_another_queue_teaches_nothing_about_the_times_of_stitches():
    queues = QueueSet()
    admitted(queues, 'a', 1.0)
    admitted(queues, 'b', 2.0)
    for now in (0.0, 1.0):
        queues.next(now)
        queues.done(now + 1)
    assert all(c.state.timing.factor == 1 for c in queues._controllers.values())


def test_empty_queues_are_forgotten_unless_they_are_kept():
    queues = QueueSet()
    for name in ('a', 'b'):
        admitted(queues, name, 9.0)
    queues.next(0.0)
    queues.done(1.0)
    queues.forget_idle({'a'})
    assert set(queues._controllers) == {'a', 'b'}  # b still waits
    queues.next(1.0)
    queues.done(2.0)
    queues.forget_idle({'a'})
    assert set(queues._controllers) == {'a'}
    assert queues.seconds_of_work(math.inf) == 0


def test_a_hiccup_does_not_make_an_idle_worker_refuse_for_ever():
    queues = QueueSet()
    now = 0.0
    for _ in range(100):  # batches take far longer than the tables say
        queues.submit('a', ONE_SECOND, [Request(0, now + 100)], now)
        queues.next(now)
        now += 20
        queues.done(now)
    assert not admitted(queues, 'a', now + 2, now)
    refusals = 0
    while not admitted(queues, 'a', now + 2, now):
        now += 1
        refusals += 1
    assert refusals < 30
    queues.next(now)
    queues.done(now + 1)  # and now they are as fast as before


def test_a_refusal_while_others_wait_forgets_nothing():
    queues = QueueSet()
    queues.submit('a', ONE_SECOND, [Request(0, 100.0)], 0.0)
    queues.next(0.0)
    queues.done(4.0)
    factor = queues._controllers['a'].state.timing.factor
    assert factor > 1
    assert admitted(queues, 'a', 100.0, 4.0)
    assert not admitted(queues, 'a', 5.0, 4.0)
    assert queues._controllers['a'].state.timing.factor == factor
