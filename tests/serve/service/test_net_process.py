"""A net in a process of its own: its answers, and what happens when it is killed, hangs or fails."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import pytest
import torch

from snnet.serve.service import net_process
from snnet.serve.service.net_process import Loading, NetProcess
from snnet.serve.service.refusal import Refusal
from snnet.serve.service.served_net import load_served_net
from tests.helpers.served import made_up_table, save_net

NOTES = """
from snnet.serve.service.served_net import ServedNet

run = ServedNet.run


def noted(served, images, stitch):
    with open({file!r}, 'a') as file:
        print(stitch, len(images), file=file)
    return run(served, images, stitch)


ServedNet.run = noted
"""

pytestmark = pytest.mark.slow  # a process that imports torch takes seconds to start


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    served = load_served_net('net', str(save_net(tmp_path_factory.mktemp('process') / 'net')), device='cpu')
    served.use_tables([made_up_table(served, batch) for batch in (1, 4)])
    return served


@pytest.fixture(scope='module')
def process(served):
    loading = Loading('net', str(served.folder), 'float32', False, 1, 1, ())
    process = NetProcess(served, loading)
    process.start()
    yield process
    process.close()


def images(served, count: int) -> list[torch.Tensor]:
    return [*torch.randn(count, *served.input_size, generator=torch.Generator().manual_seed(count))]


def pid_of(process: NetProcess) -> int:
    """Its process, once there is one."""
    for _ in range(6000):
        if process._pipe is not None:
            return process._process.pid
        time.sleep(0.01)
    return pytest.fail('no process started in a minute')


@pytest.mark.parametrize('count', [1, 3, 4, 5])  # the memory holds 4
def test_its_answers_are_those_of_the_net(served, process, count):
    pid_of(process)
    given = images(served, count)
    for stitch in (0, len(served.records) - 1):
        logits = torch.from_numpy(process(given, stitch))
        torch.testing.assert_close(logits, torch.from_numpy(served.run(given, stitch)), rtol=1e-4, atol=1e-5)


def test_it_has_run_every_choice_with_every_batch_size_before_it_answers(served, tmp_path):
    plugin = tmp_path / 'notes.py'
    plugin.write_text(NOTES.format(file=str(tmp_path / 'ran')))
    process = NetProcess(served, Loading('net', str(served.folder), 'float32', False, 1, 1, (str(plugin),)))
    process.start()
    process.close()
    ran = (tmp_path / 'ran').read_text().splitlines()
    assert ran == [f'{choice.stitch} {batch}' for batch in (4, 1, 3, 2) for choice in served.choices.choices]


def test_a_batch_that_raises_there_raises_here_and_the_process_goes_on(served, process):
    pid = pid_of(process)
    with pytest.raises(RuntimeError, match='999'):
        process(images(served, 1), 999)
    assert process(images(served, 2), 0).shape == (2, 5)
    assert pid_of(process) == pid


def test_a_killed_process_loses_its_batch_alone_and_is_replaced(served, process):
    killed = pid_of(process)
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(Refusal, match='ended and is replaced') as caught:
        process(images(served, 1), 0)
    assert caught.value.reason == 'worker_lost'
    assert process(images(served, 1), 0).shape == (1, 5)  # at once, in this process
    assert pid_of(process) != killed


def test_a_process_that_is_killed_while_it_loads_is_started_again(served, process, monkeypatch, caplog):
    """First at once, and after two tries with a pause."""
    monkeypatch.setattr(net_process, 'TRIES', 2)
    monkeypatch.setattr(net_process, 'PAUSE', 0.01)
    killed, popen = [pid_of(process)], subprocess.Popen

    def killing(*args, **options):
        started = popen(*args, **options)
        if len(killed) < 3:
            killed.append(started.pid)
            started.kill()
        return started

    monkeypatch.setattr(subprocess, 'Popen', killing)
    os.kill(killed[0], signal.SIGKILL)
    with pytest.raises(Refusal, match='ended and is replaced'):
        process(images(served, 1), 0)
    assert pid_of(process) not in killed
    assert len(killed) == 3
    assert 'computes in this process: another one did not start 2 times' in caplog.text
    assert process(images(served, 1), 0).shape == (1, 5)


def test_a_batch_that_hangs_can_be_ended(served, process):
    stopped = pid_of(process)
    os.kill(stopped, signal.SIGSTOP)
    found: list[Refusal] = []

    def ask() -> None:
        with pytest.raises(Refusal) as caught:
            process(images(served, 1), 0)
        found.append(caught.value)

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(0.2)
    assert asking.is_alive()
    process.interrupt()
    asking.join(20)
    assert [refusal.reason for refusal in found] == ['worker_lost']
    assert pid_of(process) != stopped


def test_signals_for_the_whole_group_leave_the_end_to_the_service(served, process):
    pid = pid_of(process)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)
    assert process(images(served, 1), 0).shape == (1, 5)
    assert pid_of(process) == pid


def test_other_weights_in_the_folder_are_noticed(served, caplog):
    other = NetProcess(
        served, Loading('net', str(save_net(served.folder.parent / 'other')), 'float32', False, 1, 1, ())
    )
    other.start()
    assert other._pipe is None
    assert 'computes in this process' in caplog.text
    assert other(images(served, 1), 0).shape == (1, 5)


def test_closing_ends_a_process_that_still_loads(served, monkeypatch):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, 'Popen', lambda *a, **options: started.append(popen(*a, **options)) or started[-1])
    process = NetProcess(served, Loading('net', str(served.folder), 'float32', False, 1, 1, ()))
    starting = threading.Thread(target=process.start)
    starting.start()
    while not started:
        time.sleep(0.01)
    process.close()
    starting.join(20)
    assert not starting.is_alive()
    assert [one.poll() for one in started] == [-signal.SIGKILL]
    assert process._pipe is None
