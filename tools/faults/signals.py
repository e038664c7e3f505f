"""Signals that ask a run to stop: it saves at the next step and ends well, and no step is lost."""

from __future__ import annotations

import signal

from . import check
from .kills import POINTS, SAVE
from .kinds import IDENTICAL, kind
from .lab import INTERVAL, STEPS, Lab

CLEAN = 'saved at the next step; bit-identical end after a restart'


@kind('SIGTERM to a random rank or all', often=14)
def terminate(lab: Lab) -> str:
    """Sends the signal at a random place in a random step."""
    return _stop(lab, signal.SIGTERM)


@kind('SIGINT', often=3)
def interrupt(lab: Lab) -> str:
    """The user presses Ctrl-C."""
    return _stop(lab, signal.SIGINT)


@kind('SIGUSR1', often=3)
def user_signal(lab: Lab) -> str:
    """Schedulers send it some time before they kill."""
    return _stop(lab, signal.SIGUSR1)


@kind('SIGTERM, two loader workers', often=4)
def terminate_with_workers(lab: Lab) -> str:
    """The signal may also reach the loader's workers, as it does from a terminal or a scheduler."""
    return _stop(lab, signal.SIGTERM, workers=2)


@kind('SIGTERM, and SIGTERM again in that save', often=6, lost=INTERVAL)
def terminate_twice(lab: Lab) -> str:
    """An impatient user sends it twice."""
    return _stop_in_save(lab, signal.SIGTERM, signal.SIGTERM)


@kind('SIGTERM, and SIGKILL in that save', often=10, lost=INTERVAL)
def terminate_and_kill(lab: Lab) -> str:
    """An impatient scheduler kills during the save."""
    return _stop_in_save(lab, signal.SIGTERM, signal.SIGKILL)


@kind('SIGINT, and SIGINT again in that save', often=4, lost=INTERVAL)
def interrupt_twice(lab: Lab) -> str:
    """Ctrl-C pressed twice interrupts at once."""
    return _stop_in_save(lab, signal.SIGINT, signal.SIGINT)


@kind('SIGTERM before the first step', often=2)
def terminate_at_start(lab: Lab) -> str:
    """Sends the signal while the folder is opened."""
    marker = lab.fault('file', 'pause', rank=0, match='config.yaml', at=1)
    run = lab.train(2)
    run.reached(marker)
    run.signal(signal.SIGTERM)
    run.release(marker)
    run.wait()
    check.sound(lab.output)
    lab.finish(2)
    return IDENTICAL


@kind('SIGTERM while the net is written', often=2)
def terminate_at_end(lab: Lab) -> str:
    """Writing ends at once, with nothing half-written, and the same command does the rest."""
    marker = lab.fault('file', 'pause', rank=0, match=r'/run/\.?net', at=lab.random.randint(1, 6))
    run = lab.train(lab.random.choice((1, 2)))
    run.reached(marker)
    run.signal(signal.SIGTERM)
    run.release(marker)
    codes = run.wait()
    check.require(not any(codes), f'exit statuses {codes}: {run.said()[-2000:]}')
    check.sound(lab.output)
    lab.finish(len(codes))
    return IDENTICAL


@kind('SIGTERM to torchrun', often=4)
def terminate_torchrun(lab: Lab) -> str:
    """torchrun passes the signal on to the ranks and, because they share a process group, to their loader workers."""
    return _stop_torchrun(lab, lab.random.choice((0, 2)))


@kind('SIGTERM to torchrun, started from a command line', often=1)
def terminate_real_torchrun(lab: Lab) -> str:
    """No process is a fork of this one."""
    return _stop_torchrun(lab, 0, program=True)


def _stop_torchrun(lab: Lab, workers: int, program: bool = False) -> str:
    step = lab.random.randrange(STEPS - 2)  # the ranks agree in the step after it, which must not be the last
    marker = lab.fault(lab.random.choice(POINTS), 'await signal', rank=0, at=step)
    run = lab.train(2, restarts=3, program=program, workers=workers)
    run.reached(marker)
    run.signal(signal.SIGTERM)
    run.release(marker)
    run.wait()
    check.require('stopped after step' in run.said(), f'the ranks did not stop by themselves: {run.said()[-2000:]}')
    check.sound(lab.output)
    check.tidy(lab.output)
    lab.finish(2, workers=workers)
    return CLEAN


def _stop(lab: Lab, number: int, workers: int = 0) -> str:
    world = 1 if workers else lab.random.choice((1, 2))
    ranks = lab.random.choice(([0], [world - 1], list(range(world))))
    marker = lab.fault(lab.random.choice(POINTS), 'pause', rank=ranks[0], at=lab.random.randrange(STEPS - 1))
    run = lab.train(world, workers=workers)
    run.reached(marker, ranks[:1])
    run.signal(number, ranks)
    run.release(marker)
    codes = run.wait()
    check.require(not any(codes), f'exit statuses {codes}: {run.said()[-2000:]}')
    check.sound(lab.output)
    check.tidy(lab.output)
    lab.finish(world, workers=workers)
    return CLEAN


def _stop_in_save(lab: Lab, one: int, two: int) -> str:
    """The second signal comes before a random file operation of the save."""
    world, step = lab.random.choice((1, 2)), lab.random.randrange(STEPS - 1)
    one_save = lab.operations(world, r'\.step-0*5\.')
    first = lab.fault('update', 'pause', rank=0, at=step)
    second = lab.fault('file', 'pause', rank=0, match=SAVE, since=step, at=lab.random.randint(1, one_save))
    run = lab.train(world)
    run.reached(first)
    run.signal(one)
    run.release(first)
    run.reached(second)
    run.signal(two)
    run.release(second)
    run.wait()
    check.sound(lab.output)
    lab.finish(world)
    return IDENTICAL
