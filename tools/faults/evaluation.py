"""Evaluations that are killed, and results that are torn."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from safetensors.numpy import load_file

from . import check
from .kinds import IDENTICAL, kind
from .lab import Lab, flip_bit

LIMIT = 600
"""Bytes that hold what an evaluation says on its terminal, but not its notes."""
RESULTS = ('stitches.jsonl', 'hits.safetensors')


@kind('an evaluation is killed', often=6)
def kill(lab: Lab) -> str:
    """Kills the process before a random file operation in the results folder."""
    marker = lab.fault('file', 'pause', match='/run/', at=lab.random.randint(1, 20))
    run = lab.evaluate(_net(lab), lab.output)
    run.reached(marker)
    run.signal(lab.random.choice((signal.SIGKILL, signal.SIGTERM)))
    check.require(any(run.wait()), 'nothing died')
    return _finish(lab)


@kind('an evaluation is killed while it notes results in the net', often=3)
def kill_in_net(lab: Lab) -> str:
    """The saved net must stay intact."""
    net = _net(lab)
    marker = lab.fault('file', 'pause', match='/net/.*tmp|/net$', at=lab.random.randint(1, 6))
    run = lab.evaluate(net, lab.output)
    run.reached(marker)
    run.signal(signal.SIGKILL)
    run.wait()
    load_file(net / 'model.safetensors')
    return _finish(lab)


@kind('the last line of the results is torn', often=3)
def tear(lab: Lab) -> str:
    """Only the stitch of that line is evaluated again."""
    shutil.copytree(_evaluated(lab), lab.output)
    file = lab.output / RESULTS[0]
    os.truncate(file, file.stat().st_size - lab.random.randrange(2, 100))
    return _finish(lab)


@kind('the notes of an unfinished evaluation are torn', often=3)
def tear_progress(lab: Lab) -> str:
    """The pass starts again."""
    return _damage_progress(lab, lambda file: os.truncate(file, lab.random.randrange(file.stat().st_size)))


@kind('a bit flips in the notes of an unfinished evaluation', often=4)
def flip_progress(lab: Lab) -> str:
    """The pass starts again instead of continuing from wrong sums."""
    return _damage_progress(lab, lambda file: flip_bit(file, lab.random))


@kind('no room for the notes of an evaluation', often=2)
def limit(lab: Lab) -> str:
    """It stops with a message, and continues where there is room."""
    lab.fault('file', 'limit', match='progress', at=lab.random.randint(1, 12), value=LIMIT)
    run = lab.evaluate(_net(lab), lab.output)
    codes = run.wait()
    check.require(codes == [2], f'{codes}: {run.said()[-2000:]}')
    check.sentence(run.said())
    return 'stopped with a sentence; ' + _finish(lab)


@kind('a bit flips in the weights of a net', often=3)
def flip(lab: Lab) -> str:
    """The evaluation is refused, because these are not the weights that were saved."""
    net = _net(lab)
    file = net / 'model.safetensors'
    flip_bit(file, lab.random)
    run = lab.evaluate(net, lab.output)
    codes = run.wait()
    check.require(codes == [2], f'{codes}: {run.said()[-1000:]}')
    check.sentence(run.said(), 'model.safetensors')
    return 'refused with a sentence'


def _net(lab: Lab) -> Path:
    """A separate copy of the net, because an evaluation writes into it."""
    net = lab.folder / 'net'
    shutil.copytree(lab.reference() / 'net', net)
    return net


def _evaluated(lab: Lab) -> Path:
    """Results of an undisturbed evaluation."""

    def evaluate(own: Lab) -> None:
        shutil.copytree(lab.reference() / 'net', own.folder / 'net')
        run = own.evaluate(own.folder / 'net', own.output)
        check.require(run.wait() == [0], run.said()[-2000:])

    return lab.prepared('evaluated', evaluate) / 'run'


def _damage_progress(lab: Lab, damage: Callable[[Path], object]) -> str:
    """Kills a pass that has noted some batches and damages its notes."""
    marker = lab.fault('file', 'pause', match='rename .*progress', at=3)
    run = lab.evaluate(_net(lab), lab.output)
    run.reached(marker)
    run.signal(signal.SIGKILL)
    run.wait()
    damage(next(lab.output.glob('progress.*')))
    return _finish(lab)


def _finish(lab: Lab) -> str:
    """The same command ends with the results of an undisturbed evaluation."""
    net = lab.folder / 'net'
    if not net.exists():
        _net(lab)
    output = lab.output
    run = lab.evaluate(net, output)
    codes = run.wait()
    check.require(codes == [0], f'{codes}: {run.said()[-2000:]}')
    for name in RESULTS:
        same = check.digest(output / name) == check.digest(_evaluated(lab) / name)
        check.require(same, f'{name} differs from that of an undisturbed evaluation')
    left = [path.name for folder in (net, output) for path in (*folder.glob('.*'), *folder.glob('progress*'))]
    check.require(not left, f'left over: {left}')
    return IDENTICAL.replace('end', 'results')
