"""Stored answers of the teacher: shards that are damaged, and runs that die while they fill a store."""

from __future__ import annotations

import os
import shutil
import signal

from . import check
from .kills import POINTS
from .kinds import IDENTICAL, kind
from .lab import INTERVAL, STEPS, Lab, flip_bit

TEACHER = 'largest'


@kind("a shard of the teacher's answers is damaged", often=6)
def damage(lab: Lab) -> str:
    """The teacher runs again for the steps of that shard. The end equals that of a run with a live teacher."""
    store = lab.folder / 'net' / 'store'
    shutil.copytree(lab.prepared('store', _fill) / 'store', store)
    shard = lab.random.choice(sorted(store.rglob('*.safetensors')))
    how = lab.random.choice(('flipped', 'cut', 'empty', 'gone'))
    if how == 'flipped':
        flip_bit(shard, lab.random)
    elif how == 'gone':
        shard.unlink()
    else:
        os.truncate(shard, lab.random.randrange(shard.stat().st_size) if how == 'cut' else 0)
    run = lab.train(teacher=TEACHER, teacher_store=store)
    codes = run.wait()
    check.require(codes == [0], f'{codes}: {run.said()[-2000:]}')
    check.require(how == 'gone' or shard.name in run.said(), f'no warning names {shard.name}: {run.said()[-2000:]}')
    check.whole(lab.output, lab.reference(teacher=TEACHER))
    return 'asked again with a warning; ' + IDENTICAL


@kind("kill -9 while the teacher's answers are stored", often=6, lost=INTERVAL)
def kill(lab: Lab) -> str:
    """Kills at a random place in a random step. Stored answers are replayed."""
    store = lab.folder / 'net' / 'store'
    store.parent.mkdir()
    marker = lab.fault(lab.random.choice(POINTS), 'pause', at=lab.random.randrange(STEPS))
    run = lab.train(teacher=TEACHER, teacher_store=store)
    run.reached(marker)
    run.signal(signal.SIGKILL)
    run.wait()
    check.sound(lab.output)
    run = lab.train(teacher=TEACHER, teacher_store=store)
    codes = run.wait()
    check.require(codes == [0], f'{codes}: {run.said()[-2000:]}')
    check.whole(lab.output, lab.reference(teacher=TEACHER))
    check.tidy(store)
    lab.count_lost()
    return IDENTICAL


def _fill(lab: Lab) -> None:
    """Fills a store by a whole run."""
    run = lab.train(teacher=TEACHER, teacher_store=lab.folder / 'store')
    check.require(run.wait() == [0], run.said()[-2000:])
