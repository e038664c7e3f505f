"""Files that are not what they were: bits flipped, cut off, empty, gone, renamed, torn."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from . import check
from .kinds import IDENTICAL, kind
from .lab import Lab, flip_bit

LOST = 17 - 10  # killed in step 17, its newest checkpoint after 15 steps damaged
FILES = ('state.safetensors', 'state.json', 'SHA256SUMS')


@kind('a bit flips in the newest checkpoint', often=20, lost=LOST)
def flip(lab: Lab) -> str:
    """Flips a bit in a random file."""
    return _damaged(lab, lambda file: flip_bit(file, lab.random))


@kind('a file of the newest checkpoint is cut off', often=8, lost=LOST)
def truncate(lab: Lab) -> str:
    """Cuts a random file at a random byte."""
    return _damaged(lab, lambda file: os.truncate(file, lab.random.randrange(file.stat().st_size)))


@kind('a file of the newest checkpoint is empty', often=4, lost=LOST)
def empty(lab: Lab) -> str:
    """Some file systems leave empty files after a power failure."""
    return _damaged(lab, lambda file: os.truncate(file, 0))


@kind('a file of the newest checkpoint is gone', often=4, lost=LOST)
def remove(lab: Lab) -> str:
    """Removes a random file."""
    return _damaged(lab, Path.unlink)


@kind('the manifest of the newest checkpoint is garbage', often=3, lost=LOST)
def garbage(lab: Lab) -> str:
    """The manifest is not text, or text with other content."""
    content = lab.random.choice((b'\xff\xfe\x00', b'not a manifest\n', b'0' * 64 + b'  state.safetensors\n'))
    return _damaged(lab, lambda file: (file.parent / 'SHA256SUMS').write_bytes(content))


@kind('an old checkpoint under the name of a newer one', often=3, lost=LOST)
def rename(lab: Lab) -> str:
    """Its digests match, but it holds another step than its name says."""

    def damage(file: Path) -> None:
        shutil.rmtree(file.parent)
        shutil.copytree(file.parent.with_name('step-00000005'), file.parent)

    return _damaged(lab, damage, lost=12)


@kind('all checkpoints are damaged', often=2, lost=17)
def damage_all(lab: Lab) -> str:
    """The run starts again with a warning, or refuses to start."""
    lab.stopped()
    for checkpoint in check.checkpoints(lab.output):
        os.truncate(checkpoint / lab.random.choice(FILES), 10)
    run = lab.train()
    codes = run.wait()
    if codes == [2]:
        check.sentence(run.said(), 'checkpoint')
        return 'refused with a sentence'
    check.require(codes == [0], f'{codes}: {run.said()[-2000:]}')
    check.require('set aside' in run.said(), f'no warning: {run.said()[-2000:]}')
    check.whole(lab.output, lab.reference())
    return 'warned; bit-identical end from the beginning'


@kind('the last line of log.jsonl is torn', often=4, lost=2)
def tear_log(lab: Lab) -> str:
    """The line is cut anywhere, even in the middle of a character."""
    lab.stopped()
    log = lab.output / 'log.jsonl'
    content = log.read_bytes()
    log.write_bytes(content[: -lab.random.randrange(1, 40)] + lab.random.choice((b'', b'\xc3', b'{"epoch": 2, "st')))
    lab.finish()
    return IDENTICAL


@kind('config.yaml of the run is damaged', often=2, lost=2)
def damage_config(lab: Lab) -> str:
    """The settings of the run are lost, so it refuses to continue."""
    lab.stopped()
    config = lab.output / 'config.yaml'
    content = config.read_bytes()
    config.write_bytes(lab.random.choice((b'', b'\x00\xff\xfe', b'[1, 2', content[: len(content) // 2])))
    before = check.digests(lab.output)
    run = lab.train()
    codes = run.wait()
    check.require(codes == [2], f'{codes}: {run.said()[-2000:]}')
    check.sentence(run.said(), 'config.yaml')
    config.write_bytes(content)
    lab.finish()
    check.require({*before} <= {*check.digests(lab.output)} | {*before}, 'files are gone')
    return 'refused with a sentence; bit-identical end with the right file'


def _damaged(lab: Lab, damage: Callable[[Path], object], lost: int = LOST) -> str:
    """Damages the newest checkpoint of a stopped run: it is set aside, and the one before is taken."""
    world = lab.random.choice((1, 2))
    lab.stopped(world)
    newest = check.checkpoints(lab.output)[-1]
    damage(newest / lab.random.choice(FILES))
    run_said = len(list(lab.folder.glob('said-*')))
    lab.finish(world)
    said = (lab.folder / f'said-{run_said}.txt').read_text()
    check.require(newest.name in said, f'no warning names {newest.name}: {said}')
    lab.lost = 17 - json.loads((lab.output / 'attempts.jsonl').read_text().splitlines()[-1])['step']
    return 'set aside with a warning; ' + IDENTICAL
