from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from snnet.data.loader import _leave_signals_to_the_main_process
from snnet.training.signals import StopRequest, Watchdog

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def handlers():
    """Lets no test end the test run, whatever it forgets to put back."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_sets_a_flag_and_the_handlers_come_back(number):
    with StopRequest() as stop:
        assert stop.received is None
        signal.raise_signal(number)
        assert stop.received == number.name
    assert {signal.getsignal(other) for other in SIGNALS} == {signal.default_int_handler}


def test_handlers_come_back_after_an_error_too():
    with pytest.raises(KeyError), StopRequest():
        raise KeyError
    assert {signal.getsignal(number) for number in SIGNALS} == {signal.default_int_handler}


def test_ctrl_c_pressed_twice_interrupts_at_once():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.received == 'SIGINT'


@pytest.mark.parametrize('first', [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize('second', SIGNALS)
def test_another_signal_while_the_last_step_is_saved_changes_nothing(first, second):
    with StopRequest() as stop:
        signal.raise_signal(first)
        signal.raise_signal(second)
        assert stop.received == second.name


@pytest.mark.parametrize('number', SIGNALS)
def test_a_stage_without_steps_ends_at_once(number, caplog):
    caplog.set_level('INFO', 'snnet')
    after = []
    with StopRequest() as stop:
        assert not stop.lets_end(lambda: after.append(signal.raise_signal(number)))
        assert stop.received == number.name
    assert not after
    assert f'{number.name}: stopped before the net was saved' in caplog.text


def test_a_signal_between_the_last_step_and_that_stage_ends_it_before_it_begins():
    begun = []
    with StopRequest() as stop:
        assert stop.lets_end(lambda: None)
        signal.raise_signal(signal.SIGTERM)  # outside of the stage it is a flag
        assert not stop.lets_end(lambda: begun.append(True))
    assert not begun


def test_outside_the_main_thread_it_works_without_signals():
    found = []

    def enter():
        with StopRequest() as stop:
            found.append((stop.received, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(None, signal.default_int_handler)]


def watched(file, timeout, times, seconds):
    """Exit code of a process that shows life a number of times, so many seconds apart, and then ends."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), 2)
        with Watchdog(timeout) as watchdog:
            for _ in range(times):
                time.sleep(seconds)
                watchdog.alive()
        time.sleep(2 * timeout)
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_hangs_is_ended_with_its_stack(tmp_path):
    begin = time.monotonic()
    assert watched(tmp_path / 'stderr', 0.2, 1, 30) == 1
    assert time.monotonic() - begin < 20
    assert 'Timeout' in (tmp_path / 'stderr').read_text()
    assert 'in watched' in (tmp_path / 'stderr').read_text()


def test_what_shows_life_is_let_be(tmp_path):
    assert watched(tmp_path / 'stderr', 0.6, 8, 0.1) == 7  # longer than the time in all; afterwards nobody watches
    assert (tmp_path / 'stderr').read_text() == ''


class Pids(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return os.getpid()


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_to_all_processes_takes_no_batch_away_from_the_last_step(number):
    loader = DataLoader(Pids(), num_workers=1, worker_init_fn=_leave_signals_to_the_main_process, prefetch_factor=1)
    with StopRequest() as stop:
        batches = iter(loader)
        os.kill(int(next(batches)), number)
        signal.raise_signal(number)
        pids = torch.cat(list(batches))
        assert stop.received == number.name
    assert len(pids) == 5
    assert len(pids.unique()) == 1
