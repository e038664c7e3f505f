"""Processes that die: in a step, in a save, at the start, at the end, and under torchrun."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

from . import check
from .kinds import IDENTICAL, kind
from .lab import INTERVAL, STEPS, Lab
from .launch import Run

SAVE = '/checkpoints'
POINTS = ('step', 'loss', 'update')
RECIPES: tuple[dict[str, Any], ...] = (
    {'model_ema': True},
    {'mixup': 0.8},
    {'drop_path': 0.2},
    {'aug_repeats': 3},
    {'stitches_per_step': 2},
    {'stitch_per_rank': True},
    {'sampler': 'sandwich'},
    {'grad_accum_steps': 2},
    {'opt': 'sgd'},
    {'clip_grad': 1.0},
    {'unused_grads': 'zero'},
    {'amp': True},
    {'teacher': 'largest'},
)


@kind('kill -9 of a random rank, in a step', often=10, lost=INTERVAL)
def kill_rank_in_step(lab: Lab) -> str:
    """The other rank notices that its peer is gone and ends."""
    return _kill_in_step(lab, [lab.random.randrange(2)], world=2)


@kind('kill -9 of all ranks, in a step', often=10, lost=INTERVAL)
def kill_all_in_step(lab: Lab) -> str:
    """As a machine that loses its power."""
    world = lab.random.choice((1, 2))
    return _kill_in_step(lab, range(world), world)


@kind('kill -9 in a step, two loader workers', often=4, lost=INTERVAL)
def kill_with_workers(lab: Lab) -> str:
    """The workers end by themselves; the images that they had read ahead are read again."""
    return _kill_in_step(lab, [0], world=1, workers=2)


@kind('kill -9 in a step, other recipes', often=10, lost=INTERVAL)
def kill_other_recipe(lab: Lab) -> str:
    """What else a run remembers or draws: moving averages, mixup, drop path, several stitches or batches a step."""
    world, changes = lab.random.choice((1, 2)), lab.random.choice(RECIPES)
    return _kill_in_step(lab, range(world), world, STEPS // changes.get('grad_accum_steps', 1), **changes)


@kind('kill -9 of a random rank, in a save', often=10, lost=INTERVAL)
def kill_rank_in_save(lab: Lab) -> str:
    """Before a random one of the operations on files that saves make."""
    return _kill_at_file(lab, [lab.random.randrange(2)], 2, SAVE)


@kind('kill -9 of all ranks, in a save', often=12, lost=INTERVAL)
def kill_all_in_save(lab: Lab) -> str:
    """Before a random one of the operations on files that saves make."""
    world = lab.random.choice((1, 2))
    return _kill_at_file(lab, range(world), world, SAVE)


@kind('killed at a random byte of a file of a checkpoint', often=8, lost=INTERVAL)
def kill_at_byte(lab: Lab) -> str:
    """The kernel kills the process in the middle of a write."""
    reference = check.checkpoints(lab.reference())[-1] / 'state.safetensors'
    value = lab.random.randrange(10_000, reference.stat().st_size)
    lab.fault('step', 'die at byte', at=lab.random.randrange(STEPS), value=value)
    return _killed(lab, lab.train(), 1)


@kind('kill -9 three times in one run', often=4, lost=3 * INTERVAL)
def kill_again(lab: Lab) -> str:
    """Each time when a new checkpoint has appeared."""
    for _ in range(3):
        seen = len(check.checkpoints(lab.output))
        newest = check.checkpoints(lab.output)[-1:]
        run = lab.train()
        run.until(lambda: check.checkpoints(lab.output)[-1:] != newest, f'to a checkpoint after {seen}')  # noqa: B023
        run.signal(signal.SIGKILL)
        run.wait()
        check.sound(lab.output)
    lab.finish()
    return IDENTICAL


@kind('kill -9 before the first checkpoint', often=6, lost=INTERVAL)
def kill_before_checkpoint(lab: Lab) -> str:
    """At the start of the process, while the folder is opened, or in the first steps."""
    world = lab.random.choice((1, 2))
    place = lab.random.choice(('start', 'file', 'step'))
    count = lab.operations(world, r'/run/?$|config.yaml|train.log')
    at = lab.random.randrange(4) if place == 'step' else lab.random.randint(1, count)
    marker = lab.fault(place, 'pause', at=at, match=r'/run/?$|config.yaml|train.log', rank=0)
    run = lab.train(world)
    run.reached(marker)
    run.signal(signal.SIGKILL)
    return _killed(lab, run, world)


@kind('kill -9 while the net is written', often=6, lost=INTERVAL)
def kill_in_net(lab: Lab) -> str:
    """Before a random one of the operations on files in the folder of the net."""
    return _kill_at_file(lab, [0], lab.random.choice((1, 2)), r'/run/\.?net')


@kind('a rank dies at the start, torchrun restarts', often=2)
def die_at_start(lab: Lab) -> str:
    """A new attempt finds no stale addresses in the store."""
    lab.fault('start', 'kill', rank=lab.random.randrange(2))
    return _restarted(lab)


@kind('a rank dies in a step, torchrun restarts', often=4, lost=INTERVAL)
def die_in_step(lab: Lab) -> str:
    """Twice, so that there are three attempts."""
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
    attempts = run.said().count('a fault was injected here\n')
    check.require(attempts <= 4, f'{attempts} attempts were made')
    check.sound(lab.output)
    lab.faults.clear()
    lab.finish(2)
    return f'stopped after {attempts} attempts with the cause; bit-identical end after a restart'


def _kill_in_step(lab: Lab, ranks: Sequence[int], world: int, steps: int = STEPS, **changes: Any) -> str:
    """Pauses a random place of a random step and kills."""
    marker = lab.fault(lab.random.choice(POINTS), 'pause', at=lab.random.randrange(steps), rank=ranks[0])
    run = lab.train(world, **changes)
    run.reached(marker, ranks[:1])
    run.signal(signal.SIGKILL, ranks)
    return _killed(lab, run, world, **changes)


def _kill_at_file(lab: Lab, ranks: Sequence[int], world: int, pattern: str) -> str:
    """Pauses the first rank before an operation on a file and kills."""
    marker = lab.fault('file', 'pause', rank=0, match=pattern, at=lab.random.randint(1, lab.operations(world, pattern)))
    run = lab.train(world)
    run.reached(marker)
    run.signal(signal.SIGKILL, ranks)
    if 0 not in ranks:
        run.release(marker)
    return _killed(lab, run, world)


def _killed(lab: Lab, run: Run, world: int, **changes: Any) -> str:
    """What holds after a death: nothing is broken, and the run goes on to the same end."""
    codes = run.wait()
    check.require(any(codes), f'nothing died: {codes}')
    check.sound(lab.output)
    lab.finish(world, **changes)
    return IDENTICAL


def _restarted(lab: Lab) -> str:
    """Under torchrun the run comes to the same end by itself."""
    run = lab.train(2, restarts=3)
    codes = run.wait()
    check.require(not any(codes), f'torchrun gave up: {run.said()[-3000:]}')
    check.whole(lab.output, lab.reference(2))
    lab.count_lost()
    return IDENTICAL
