"""Evaluations that are killed, and results that are torn."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from safetensors.numpy import load_file

from . import check
from .kinds import IDENTICAL, kind
from .lab import Lab

RESULTS = 'stitches.jsonl'


@kind('an evaluation is killed', often=6)
def kill(lab: Lab) -> str:
    """Before a random operation on a file in the folder of the results."""
    marker = lab.fault('file', 'pause', match='/run/', at=lab.random.randint(1, 20))
    run = lab.evaluate(_net(lab), lab.output)
    run.reached(marker)
    run.signal(lab.random.choice((signal.SIGKILL, signal.SIGTERM)))
    check.require(any(run.wait()), 'nothing died')
    return _finish(lab)


@kind('an evaluation is killed while it notes results in the net', often=3)
def kill_in_net(lab: Lab) -> str:
    """The net must stay whole."""
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
    """Its stitch alone is evaluated again."""
    shutil.copytree(_evaluated(lab), lab.output)
    file = lab.output / RESULTS
    os.truncate(file, file.stat().st_size - lab.random.randrange(2, 100))
    return _finish(lab)


@kind('the notes of an unfinished evaluation are torn', often=3)
def tear_progress(lab: Lab) -> str:
    """The pass begins anew."""
    marker = lab.fault('file', 'pause', match='rename .*progress.json', at=3)
    run = lab.evaluate(_net(lab), lab.output)
    run.reached(marker)
    run.signal(signal.SIGKILL)
    run.wait()
    file = lab.output / 'progress.json'
    os.truncate(file, lab.random.randrange(file.stat().st_size))
    return _finish(lab)


@kind('a bit flips in the weights of a net', often=3)
def flip(lab: Lab) -> str:
    """An evaluation of other weights than were saved would mean nothing."""
    net = _net(lab)
    file = net / 'model.safetensors'
    content = bytearray(file.read_bytes())
    content[lab.random.randrange(len(content) // 2, len(content))] ^= 1 << lab.random.randrange(8)
    file.write_bytes(content)
    run = lab.evaluate(net, lab.output)
    codes = run.wait()
    check.require(codes == [2], f'{codes}: {run.said()[-1000:]}')
    check.sentence(run.said(), 'model.safetensors')
    return 'refused with a sentence'


def _net(lab: Lab) -> Path:
    """A net of its own: an evaluation writes into it."""
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


def _finish(lab: Lab) -> str:
    """The same command ends with the results of an undisturbed evaluation."""
    net = lab.folder / 'net'
    if not net.exists():
        _net(lab)
    output = lab.output
    run = lab.evaluate(net, output)
    codes = run.wait()
    check.require(codes == [0], f'{codes}: {run.said()[-2000:]}')
    same = check.digest(output / RESULTS) == check.digest(_evaluated(lab) / RESULTS)
    check.require(same, 'the results differ from those of an undisturbed evaluation')
    left = [path.name for folder in (net, output) for path in (*folder.glob('.*'), *folder.glob('progress*'))]
    check.require(not left, f'left over: {left}')
    return IDENTICAL.replace('end', 'results')
