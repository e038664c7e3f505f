from __future__ import annotations

import threading
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from snnet.serve import Choices
from snnet.serve.service.refusal import Refusal
from snnet.serve.service.worker import MOST_LOST, Worker
from tests.serve.test_controller import affine

CHOICES = Choices([affine(7, 80, 0.0005, 0.0005)])
IMAGE = torch.zeros(3, 2, 2)


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def sums(images, stitch):
    return np.array([[float(image.sum()), stitch] for image in images], np.float32)


@pytest.fixture
def worker():
    worker = Worker(hang_seconds=2.0, clock=Clock())
    worker.start()
    yield worker
    worker.close()


def ask(worker: Worker, run=sums, images=(IMAGE,), deadline: float = 100.0) -> list[Future]:
    futures = worker.submit('queue', CHOICES, images, run, deadline, 0.0)
    assert futures is not None
    return futures


def test_an_image_is_answered(worker):
    answer = ask(worker, images=[IMAGE + 1])[0].result(10)
    assert (answer.logits.tolist(), answer.stitch, answer.batch) == ([12.0, 7.0], 7, 1)
    assert worker.unanswered == 0


def test_a_deadline_that_cannot_be_met_is_refused_at_once(worker):
    assert worker.submit('queue', CHOICES, [IMAGE], sums, 0.0001, 0.0) is None
    assert not worker.could_admit('queue', CHOICES, 1, 0.0001, 0.0)
    assert worker.could_admit('queue', CHOICES, 1, 1.0, 0.0)


def test_a_batch_that_raises_fails_alone(worker):
    def fails(images, stitch):
        raise ZeroDivisionError('a bad weight')

    with pytest.raises(Refusal, match='network failed') as caught:
        ask(worker, fails)[0].result(10)
    assert caught.value.reason == 'failed'
    assert ask(worker)[0].result(10).stitch == 7
    assert worker.lost == 0


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_worker_that_dies_is_replaced_and_its_requests_are_refused(worker):
    def dies(images, stitch):
        raise SystemExit

    (future,) = ask(worker, dies)
    worker._thread.join(10)
    worker.watch()
    with pytest.raises(Refusal, match='died, and was replaced') as caught:
        future.result(10)
    assert caught.value.reason == 'worker_lost'
    assert ask(worker)[0].result(10).stitch == 7
    assert (worker.lost, worker.healthy) == (1, True)


def test_a_process_that_ended_in_a_batch_counts_as_lost_and_refuses_that_batch_alone(worker):
    def ends(images, stitch):
        raise Refusal('worker_lost', 'the process ended', 0.0)

    with pytest.raises(Refusal, match='the process ended') as caught:
        ask(worker, ends)[0].result(10)
    assert (caught.value.reason, caught.value.retry_after) == ('worker_lost', 0.0)
    assert ask(worker)[0].result(10).stitch == 7
    assert (worker.lost, worker.healthy) == (1, True)


class Interruptible:
    """Hangs until it is interrupted."""

    def __init__(self) -> None:
        self.begun, self.end = threading.Event(), threading.Event()

    def __call__(self, images, stitch):
        self.begun.set()
        self.end.wait(30)
        raise Refusal('worker_lost', 'interrupted')

    def interrupt(self) -> None:
        self.end.set()


def test_a_batch_that_can_be_interrupted_leaves_no_thread_behind(worker):
    run = Interruptible()
    (future,) = ask(worker, run)
    assert run.begun.wait(10)
    assert worker.uses(run)
    old = worker._thread
    worker._clock.now += 2.1
    worker.watch()
    old.join(10)
    assert not old.is_alive()
    with pytest.raises(Refusal, match='hangs in a batch'):
        future.result(10)
    assert ask(worker)[0].result(10).stitch == 7
    assert (worker.lost, worker.uses(run)) == (1, False)


def hang(worker: Worker) -> tuple[Future, threading.Event]:
    """A request whose batch hangs until the event."""
    begun, end = threading.Event(), threading.Event()

    def hangs(images, stitch):
        begun.set()
        end.wait(30)
        return sums(images, stitch)

    (future,) = ask(worker, hangs, deadline=worker._clock.now + 100)
    assert begun.wait(10)
    return future, end


def test_a_worker_that_hangs_is_replaced_and_what_it_computes_in_the_end_is_discarded(worker):
    future, end = hang(worker)
    worker._clock.now += 1.9
    worker.watch()
    assert not future.done()
    worker._clock.now += 0.2
    old = worker._thread
    worker.watch()
    with pytest.raises(Refusal, match=r'hangs in a batch since 2\.1 s'):
        future.result(10)
    assert ask(worker)[0].result(10).stitch == 7
    end.set()
    old.join(10)
    assert not old.is_alive()
    assert ask(worker)[0].result(10).stitch == 7


def test_after_too_many_hangs_the_worker_says_that_it_needs_a_restart(worker):
    ends = []
    for _ in range(MOST_LOST):
        assert worker.healthy
        ends.append(hang(worker)[1])
        worker._clock.now += 3
        worker.watch()
    assert not worker.healthy
    left = worker._left_behind
    for end in ends:
        end.set()
    for thread in left:
        thread.join(10)
    assert worker.healthy


def test_requests_that_wait_when_the_worker_closes_are_refused():
    worker = Worker(clock=Clock())
    (future,) = ask(worker)
    worker.close()
    with pytest.raises(Refusal, match='service ends'):
        future.result(0)
    assert worker.submit('queue', CHOICES, [IMAGE], sums, 100.0, 0.0) is None


def test_requests_that_are_lost_after_a_hiccup_are_refused_before_they_run():
    worker = Worker(clock=Clock())
    futures = ask(worker, deadline=0.5) + ask(worker, deadline=100.0)
    worker._clock.now = 1.0
    worker.start()
    assert futures[1].result(10).batch == 1
    with pytest.raises(Refusal, match='longer than expected') as caught:
        futures[0].result(10)
    assert caught.value.reason == 'given_up'
    worker.close()


def test_a_client_that_goes_away_leaves_no_trace(worker):
    (future,) = ask(worker)
    future.cancel()
    assert ask(worker)[0].result(10).stitch == 7
