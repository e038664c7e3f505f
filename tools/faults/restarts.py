"""What follows a death: torchrun restarts the ranks, again and again, or dies itself; a restart that is killed."""

from __future__ import annotations

import os
import signal

from . import check
from .kinds import IDENTICAL, kind
from .lab import INTERVAL, STEPS, Lab
from .processes import left_over


@kind('a rank dies at the start, torchrun restarts', often=2)
def die_at_start(lab: Lab) -> str:
    """The new attempt finds no stale addresses in the store."""
    lab.fault('start', 'kill', rank=lab.random.randrange(2))
    return _restarted(lab)


@kind('a rank dies in a step, torchrun restarts', often=4, lost=INTERVAL)
def die_in_step(lab: Lab) -> str:
    """A rank dies twice, so there are three attempts."""
    first = lab.random.randrange(1, STEPS - 6)
    lab.fault('loss', 'kill', rank=lab.random.randrange(2), at=first)
    lab.fault('loss', 'kill', rank=lab.random.randrange(2), at=first + INTERVAL)
    _restarted(lab)
    lab.lost //= 2
    return IDENTICAL


@kind('a rank crashes at the same step again and again', often=2, lost=4 * INTERVAL)
def restart_storm(lab: Lab) -> str:
    """The run stops by itself, long before torchrun gives up, and says why."""
    at = lab.random.randrange(STEPS)
    lab.fault('step', 'crash', rank=lab.random.randrange(2), at=at, last=at)
    run = lab.train(2, restarts=5)
    check.require(run.wait() != [0], 'the run ended well')
    attempts = run.said().count('\nRuntimeError: a fault was injected here\n')
    check.require(attempts <= 4, f'{attempts} attempts were made')  # the first may have made a checkpoint
    told = [line for line in run.said().splitlines() if 'it is not tried again' in line]
    check.require(any('a fault was injected here' in line for line in told), f'no cause is told: {told}')
    check.sound(lab.output)
    lab.faults.clear()
    lab.finish(2)
    return 'stopped after three attempts from one step, with the cause; bit-identical end after a restart'


@kind('kill -9 of torchrun itself', often=2, lost=INTERVAL)
def kill_torchrun(lab: Lab) -> str:
    """The ranks exit by themselves, and the run can be started again."""
    marker = lab.fault('loss', 'pause', rank=0, at=lab.random.randrange(STEPS))
    run = lab.train(2, restarts=3)
    run.reached(marker)
    run.signal(signal.SIGKILL)
    run.release(marker)
    run.wait()
    left = left_over(patience=60)
    check.require(not left, f'ranks without torchrun did not end: {run.said()[-2000:]}')
    check.sound(lab.output)
    lab.finish(2)
    return IDENTICAL


@kind('kill -9 while a run is taken up again', often=6, lost=12)
def kill_again_at_start(lab: Lab) -> str:
    """Kills before a random file operation. The newest checkpoint may also be damaged and about to be set aside."""
    world = lab.random.choice((1, 2))
    lab.stopped(world)
    if lab.random.random() < 0.5:
        os.truncate(check.checkpoints(lab.output)[-1] / 'state.json', 20)
    marker = lab.fault('file', 'pause', rank=0, match='/run', at=lab.random.randint(1, 25))
    run = lab.train(world)
    run.reached(marker)
    run.signal(signal.SIGKILL)
    run.wait()
    lab.finish(world)
    return IDENTICAL


def _restarted(lab: Lab) -> str:
    """Under torchrun the run reaches the same end by itself."""
    run = lab.train(2, restarts=3)
    codes = run.wait()
    check.require(not any(codes), f'torchrun gave up: {run.said()[-3000:]}')
    check.whole(lab.output, lab.reference(2))
    lab.count_lost()
    return IDENTICAL
