"""Numbers that go wrong: losses, gradients, weights and moments that are not finite, ranks that drift or hang."""

from __future__ import annotations

import json
import time
from typing import Any

from . import check
from .kinds import STOPPED, kind
from .lab import INTERVAL, STEPS, Lab
from .launch import Run

SKIPS = 3


@kind('NaN loss on a random rank, once', often=6)
def nan_once(lab: Lab) -> str:
    """All ranks skip the step, so the end is the same whichever rank had the NaN."""
    return _left_out(lab, 'nan loss')


@kind('NaN gradient with a finite loss, once', often=4)
def nan_gradient(lab: Lab) -> str:
    """Only the gradients show it."""
    return _left_out(lab, 'nan gradient')


@kind('NaN loss in every step from some step on', often=4, lost=INTERVAL)
def nan_always(lab: Lab) -> str:
    """The run stops after the allowed number of bad steps in a row, and keeps its last good checkpoint."""
    at = lab.random.randrange(STEPS - SKIPS)
    lab.fault('loss', 'nan loss', rank=lab.random.randrange(2), at=at, last=STEPS)
    run = lab.train(2, max_skips=SKIPS)
    return _stopped(lab, run, f'{SKIPS} steps in a row', max_skips=SKIPS, exact=_no_checkpoint_in(at, at + SKIPS))


@kind('NaN in a weight', often=4, lost=STEPS)
def nan_weight(lab: Lab) -> str:
    """A weight becomes NaN on one rank or on all. It never gets into a checkpoint."""
    lab.fault('update', 'nan weight', rank=lab.random.choice((0, 1, None)), at=lab.random.randrange(STEPS - SKIPS))
    return _stopped(lab, lab.train(2, max_skips=SKIPS), max_skips=SKIPS, exact=False)


@kind('NaN in a moment of the optimizer', often=4, lost=STEPS)
def nan_moment(lab: Lab) -> str:
    """The next update carries it into a weight."""
    world = lab.random.choice((1, 2))
    lab.fault('update', 'nan moment', at=lab.random.randrange(STEPS - SKIPS))
    return _stopped(lab, lab.train(world, max_skips=SKIPS), world=world, max_skips=SKIPS, exact=False)


@kind('a rank drifts by 1e-6', often=8, lost=2 * INTERVAL)
def drift(lab: Lab) -> str:
    """The drift is caught before a checkpoint contains it."""
    lab.fault('update', 'drift', rank=lab.random.randrange(2), at=lab.random.randrange(STEPS))
    checks = lab.random.choice((1, 4, 7))
    return _stopped(lab, lab.train(2, check_steps=checks), 'differ', check_steps=checks)


@kind('a rank hangs', often=3, lost=INTERVAL)
def hang(lab: Lab) -> str:
    """All ranks exit within seconds of the timeout, and the stack shows where the rank hung."""
    timeout = 8
    point, at = lab.random.choice(('step', 'loss', 'update')), lab.random.randrange(STEPS)
    marker = lab.fault(point, 'hang', rank=lab.random.randrange(2), at=at)
    run = lab.train(2, timeout=timeout)
    run.until(lambda: any(lab.folder.glob(f'{marker}.*')), 'to the hang')
    begin = time.monotonic()
    codes = run.wait()
    seconds = time.monotonic() - begin
    check.require(all(codes), f'{codes}')
    check.require('_hang' in run.said(), f'no stack: {run.said()[-3000:]}')
    check.require(seconds < timeout + 10, f'the ranks were gone only after {seconds:.0f} s')
    check.sound(lab.output)
    lab.finish(2)
    return 'ended with the stack; bit-identical end after a restart'


def _left_out(lab: Lab, action: str) -> str:
    """A poisoned step on one rank leads to the same end as on both."""
    step, rank = lab.random.randrange(STEPS), lab.random.randrange(2)
    ends = []
    for ranks in (rank, None):
        own = Lab(lab.folder / str(ranks), lab.shared, lab.random)
        own.folder.mkdir()
        own.fault('loss', action, rank=ranks, at=step)
        run = own.train(2)
        codes = run.wait()
        check.require(not any(codes), f'{codes}: {run.said()[-2000:]}')
        check.finite(own.output)
        rows = [json.loads(line) for line in (own.output / 'log.jsonl').read_text().splitlines()]
        skipped = [row['step'] for row in rows if row.get('skipped')]
        check.require(skipped == [step], f'steps {skipped} were left out, not {step}')
        check.require(step not in own.steps(), f'step {step} moved weights')
        ends.append(check.digest(own.output / check.WEIGHTS))
    check.require(ends[0] == ends[1], f'the end depends on which rank had it: step {step}, rank {rank}')
    return 'left out by all ranks alike'


def _stopped(lab: Lab, run: Run, *words: str, world: int = 2, exact: bool = True, **changes: Any) -> str:
    """The run stops with a message and leaves a good checkpoint, from which it continues to a good end."""
    codes = run.wait()
    check.require(any(codes) and set(codes) <= {2, -15}, f'{codes}: {run.said()[-2000:]}')
    if words:
        check.require(any(all(w in line for w in words) for line in run.said().splitlines()), run.said()[-2000:])
    check.require('Traceback' not in run.said(), run.said()[-3000:])
    check.sound(lab.output)
    check.finite(lab.output)
    lab.faults.clear()
    if exact:
        lab.finish(world, **changes)
        return STOPPED
    again = lab.train(world, **changes)
    codes = again.wait()
    check.require(not any(codes), f'the run did not go on: {codes}: {again.said()[-2000:]}')
    check.finite(lab.output)
    return 'stopped with a sentence; finite end after a restart'


def _no_checkpoint_in(first: int, last: int) -> bool:
    """Whether no checkpoint is due after these steps. A restart then goes back to before them."""
    return not any(first < due <= last for due in range(0, STEPS, INTERVAL))
