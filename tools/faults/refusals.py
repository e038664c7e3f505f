"""What users change between the parts of a run, on purpose or not."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from . import check
from .kinds import IDENTICAL, REFUSED, kind
from .lab import IMAGES_A_STEP, STEPS, Lab

CHANGES: tuple[dict[str, Any], ...] = (
    {'lr': 0.01},
    {'epochs': 4},
    {'seed': 1},
    {'weight_decay': 0.0},
    {'opt': 'sgd'},
    {'init': 'mean'},
    {'smoothing': 0.0},
    {'freeze_anchors': True},
    {'dataset': 'generated/40'},
)


@kind('a changed setting', often=6, lost=2)
def setting(lab: Lab) -> str:
    """The message names the setting."""
    changes = lab.random.choice(CHANGES)
    return _refused(lab, *changes, **changes)


@kind('changed anchors', often=3, lost=2)
def anchors(lab: Lab) -> str:
    """Other anchors, fewer, or in a different order."""
    names = lab.random.choice(('test_vit,test_vit3', 'test_vit2,test_vit', 'test_vit'))
    return _refused(lab, 'anchors', anchors=names)


@kind('another number of processes', often=3, lost=2)
def world(lab: Lab) -> str:
    """The number of images per step changes with it."""
    before = lab.random.choice((1, 2))
    return _refused(lab, 'process', before=before, world=3 - before, batch_size=IMAGES_A_STEP // before)


@kind('another number of processes with the same images a step', often=3, lost=2)
def rescaled(lab: Lab) -> str:
    """The run continues. Sums round differently, so the end is close but not equal."""
    before = lab.random.choice((1, 2))
    lab.stopped(before)
    run = lab.train(3 - before)
    codes = run.wait()
    check.require(not any(codes), f'{codes}: {run.said()[-2000:]}')
    check.sound(lab.output)
    ours, expected = (load_file(folder / check.WEIGHTS) for folder in (lab.output, lab.reference(before)))
    furthest = max(float(np.abs(ours[name] - expected[name]).max()) for name in expected)
    check.require(furthest < 1e-3, f'weights are off by {furthest}')
    return 'went on; the weights end within 0.001'


@kind('--no-resume with a run in the folder', often=2, lost=2)
def no_resume(lab: Lab) -> str:
    """A new run needs another folder."""
    return _refused(lab, '--resume', resume=False)


@kind('a finished run is started again', often=2)
def finished(lab: Lab) -> str:
    """The run says so and changes nothing."""
    number = lab.random.choice((1, 2))
    shutil.copytree(lab.reference(number), lab.output)
    run = lab.train(number)
    codes = run.wait()
    check.require(not any(codes), f'{codes}: {run.said()[-2000:]}')
    check.require(not lab.steps(), 'steps were trained')
    check.whole(lab.output, lab.reference(number))
    return 'said so, exit 0'


@kind('a finished run whose net is gone or damaged', often=3)
def finished_without_net(lab: Lab) -> str:
    """The net is written again from the last checkpoint."""
    shutil.copytree(lab.reference(), lab.output)
    weights = lab.output / check.WEIGHTS
    how = lab.random.choice(('gone', 'without weights', 'cut'))
    if how == 'gone':
        shutil.rmtree(weights.parent)
    elif how == 'without weights':
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    run = lab.train()
    codes = run.wait()
    check.require(codes == [0], f'{codes}: {run.said()[-2000:]}')
    check.whole(lab.output, lab.reference())
    return 'written again; ' + IDENTICAL


@kind('two runs in one folder', often=3)
def two_runs(lab: Lab) -> str:
    """The second run is refused, and the first continues."""
    number, at = lab.random.choice((1, 2)), lab.random.randrange(STEPS)
    marker = lab.fault('step', 'pause', at=at)
    first = lab.train(number)
    first.reached(marker)
    second = lab.train(number)
    codes = second.wait()
    check.require(2 in codes and all(codes), f'{codes}: {second.said()[-2000:]}')
    check.require('another process' in second.said(), second.said()[-2000:])
    first.release(marker)
    codes = first.wait()
    check.require(not any(codes), f'{codes}: {first.said()[-2000:]}')
    check.whole(lab.output, lab.reference(number))
    return 'the second refused with a sentence; the first: ' + IDENTICAL


@kind('a folder with other things in it', often=2)
def foreign(lab: Lab) -> str:
    """Nothing in the folder is touched."""
    lab.output.mkdir()
    (lab.output / 'thesis.tex').write_text('ten years of work')
    before = check.digests(lab.output)
    run = lab.train(lab.random.choice((1, 2)))
    codes = run.wait()
    check.require(2 in codes, f'{codes}: {run.said()[-2000:]}')
    check.sentence(run.said(), str(lab.output))
    check.require(check.digests(lab.output) == before, 'the folder was changed')
    return REFUSED


def _refused(lab: Lab, *words: str, before: int = 1, world: int = 1, **changes: Any) -> str:
    """A stopped run is left as it is, and continues with the right command."""
    lab.stopped(before)
    held = check.digests(lab.output)
    run = lab.train(world, **changes)
    codes = run.wait()
    check.require(2 in codes and set(codes) <= {2, -15}, f'{codes}: {run.said()[-2000:]}')
    check.sentence(run.said(), *words)
    check.require(check.digests(lab.output) == held, 'the folder was changed')
    lab.finish(before)
    return REFUSED
