"""Processes that die: in a step, in a save, at the start and at the end."""

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
    return kill_in_step(lab, [lab.random.randrange(2)], world=2)


@kind('kill -9 of all ranks, in a step', often=10, lost=INTERVAL)
def kill_all_in_step(lab: Lab) -> str:
    """The same as a power failure."""
    world = lab.random.choice((1, 2))
    return kill_in_step(lab, range(world), world)


@kind('kill -9 in a step, two loader workers', often=4, lost=INTERVAL)
def kill_with_workers(lab: Lab) -> str:
    """The workers exit by themselves, and the images that they had read ahead are read again."""
    return kill_in_step(lab, [0], world=1, workers=2)


@kind('kill -9 in a step, other recipes', often=10, lost=INTERVAL)
def kill_other_recipe(lab: Lab) -> str:
    """Recipes with more state: moving averages, mixup, drop path, several stitches or batches per step."""
    world, changes = lab.random.choice((1, 2)), lab.random.choice(RECIPES)
    return kill_in_step(lab, range(world), world, STEPS // changes.get('grad_accum_steps', 1), **changes)


@kind('kill -9 of a random rank, in a save', often=10, lost=INTERVAL)
def kill_rank_in_save(lab: Lab) -> str:
    """Kills before a random file operation of a save."""
    return _kill_at_file(lab, [lab.random.randrange(2)], 2, SAVE)


@kind('kill -9 of all ranks, in a save', often=12, lost=INTERVAL)
def kill_all_in_save(lab: Lab) -> str:
    """Kills before a random file operation of a save."""
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
    """Kills each time a new checkpoint has appeared."""
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
    """Kills at the start of the process, while the folder is opened, or in the first steps."""
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
    """Kills before a random file operation in the net's folder."""
    return _kill_at_file(lab, [0], lab.random.choice((1, 2)), r'/run/\.?net')


def kill_in_step(lab: Lab, ranks: Sequence[int], world: int, steps: int = STEPS, **changes: Any) -> str:
    """Pauses at a random place in a random step and kills."""
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
    """What must hold after a kill: nothing is broken, and the run continues to the same end."""
    codes = run.wait()
    check.require(any(codes), f'nothing died: {codes}')
    check.sound(lab.output)
    lab.finish(world, **changes)
    return IDENTICAL
