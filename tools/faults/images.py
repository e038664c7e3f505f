"""Images that cannot be read, loader processes that are killed, and weights that are not what they say."""

from __future__ import annotations

import os
import pickle
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import check
from .kills import kill_in_step
from .kinds import IDENTICAL, STOPPED, kind
from .lab import INTERVAL, STEPS, Lab, write_pictures
from .processes import children

COUNTED = 'warned and replaced, the same with 0 and 2 loader workers'


@kind('unreadable images', often=3)
def unreadable(lab: Lab) -> str:
    """Files of random bytes."""
    return _bad(lab, lambda file: file.write_bytes(lab.random.randbytes(200)))


@kind('truncated images', often=3)
def truncated(lab: Lab) -> str:
    """Files cut off at a random byte."""
    return _bad(lab, lambda file: os.truncate(file, lab.random.randrange(file.stat().st_size - 30)))


@kind('images of absurd size', often=2)
def huge(lab: Lab) -> str:
    """A file of a few bytes that claims to have 3600 megapixels."""
    return _bad(lab, lambda file: file.write_bytes(_bomb(60_000)))


@kind('kill -9 in a step, with bad images', often=4, lost=INTERVAL)
def kill_with_bad(lab: Lab) -> str:
    """Bad images that were found before the kill are still known after it, and are replaced by the same images."""
    data = lab.prepared('bad pictures', _write_bad) / 'data'
    world, workers = lab.random.choice((1, 2)), lab.random.choice((0, 2))
    bad: dict[str, Any] = {'dataset': None, 'data_dir': data, 'max_bad_images': 0.2}
    return kill_in_step(lab, range(world), world, workers=workers, **bad)


@kind('images that vanish while training', often=2)
def vanished(lab: Lab) -> str:
    """The images were there when the folder was listed."""
    data = lab.folder / 'data'
    write_pictures(data)
    marker = lab.fault('step', 'pause', at=lab.random.randrange(STEPS // 2))
    run = lab.train(dataset=None, data_dir=data, max_bad_images=0.2)
    run.reached(marker)
    lab.random.choice(sorted(data.rglob('*.png'))).unlink()
    run.release(marker)
    codes = run.wait()
    check.require(codes == [0], f'{codes}: {run.said()[-2000:]}')
    check.tidy(lab.output)
    return 'warned and replaced'


@kind('CMYK, grey, palette, transparent and 16-bit images', often=2)
def modes(lab: Lab) -> str:
    """All of them can be read, so none counts as bad."""
    data = lab.folder / 'data'
    write_pictures(data)
    for file, mode in zip(sorted(data.rglob('*.png')), ('CMYK', 'L', 'P', 'RGBA', 'LA', '1', 'I;16'), strict=False):
        picture: Image.Image = Image.open(file)
        if mode == 'I;16':
            picture = Image.fromarray(np.asarray(picture.convert('L')).astype(np.uint16) * 257)
        else:
            picture = picture.convert(mode)
        picture.save(file, format='JPEG' if mode == 'CMYK' else 'PNG')  # a JPEG under the name of a PNG, too
    run = lab.train(dataset=None, data_dir=data, max_bad_images=0)
    codes = run.wait()
    check.require(codes == [0], f'{codes}: {run.said()[-2000:]}')
    return 'read like any other'


@kind('more bad images than allowed', often=3)
def too_many(lab: Lab) -> str:
    """The run stops with a message, and continues once the files are repaired."""
    data = lab.folder / 'data'
    write_pictures(data)
    files = lab.random.sample(sorted(data.rglob('*.png')), 5)
    before = {file: file.read_bytes() for file in files}
    for file in files:
        file.write_bytes(b'no image')
    world = lab.random.choice((1, 2))
    run = lab.train(world, dataset=None, data_dir=data, max_bad_images=0.1, workers=lab.random.choice((0, 2)))
    codes = run.wait()
    check.require(2 in codes and set(codes) <= {2, -15}, f'{codes}: {run.said()[-2000:]}')
    check.sentence(run.said(), '.png')
    check.sound(lab.output)
    for file, content in before.items():
        file.write_bytes(content)
    run = lab.train(world, dataset=None, data_dir=data, max_bad_images=0.2)
    codes = run.wait()
    return 'stopped with a sentence; ' + ('goes on' if not any(codes) else 'wants a new folder')


@kind('a loader worker is killed', often=4, lost=INTERVAL)
def kill_worker(lab: Lab) -> str:
    """The kernel does the same when memory runs out."""
    marker = lab.fault('step', 'pause', at=lab.random.randrange(STEPS - 1))
    run = lab.train(workers=2)
    run.reached(marker)
    workers = children(run.pids[0])
    check.require(bool(workers), 'there is no worker')
    os.kill(lab.random.choice(workers), signal.SIGKILL)
    run.release(marker)
    codes = run.wait()
    check.require(codes in ([0], [2]), f'{codes}: {run.said()[-2000:]}')
    check.require('Traceback' not in run.said(), run.said()[-3000:])
    check.sound(lab.output)
    lab.finish(workers=2)
    return STOPPED if codes == [2] else 'went on with new ones; ' + IDENTICAL


@kind('a pickle with a payload as weights', often=2)
def payload(lab: Lab) -> str:
    """The file is refused, and its payload never runs."""
    proof, file = lab.folder / 'ran', lab.folder / 'weights.pth'
    file.write_bytes(pickle.dumps(_Payload(proof), protocol=lab.random.choice((2, 4))))
    run = lab.train(anchors=f'test_vit={file},test_vit2')
    codes = run.wait()
    check.require(not proof.exists(), 'the payload ran')
    check.require(codes == [2], f'{codes}: {run.said()[-2000:]}')
    check.sentence(run.said(), 'weights.pth')
    return 'refused with a sentence; the payload did not run'


@kind('a pickle with a payload in the place of a checkpoint', often=2, lost=7)
def payload_in_checkpoint(lab: Lab) -> str:
    """The checkpoint is refused even though its manifest matches."""
    lab.stopped()
    proof, newest = lab.folder / 'ran', check.checkpoints(lab.output)[-1]
    file, sums = newest / 'state.safetensors', newest / 'SHA256SUMS'
    before = check.digest(file)
    file.write_bytes(pickle.dumps(_Payload(proof)))
    sums.write_text(sums.read_text().replace(before, check.digest(file)))
    run = lab.train()
    codes = run.wait()
    check.require(not proof.exists(), 'the payload ran')
    check.require(codes in ([0], [2]), f'{codes}: {run.said()[-2000:]}')
    if codes == [2]:
        check.sentence(run.said(), newest.name)
        return 'refused with a sentence; the payload did not run'
    check.whole(lab.output, lab.reference())
    return 'set aside with a warning; the payload did not run; ' + IDENTICAL


def _write_bad(lab: Lab) -> None:
    write_pictures(lab.folder / 'data')
    for file in lab.random.sample(sorted(lab.folder.rglob('*.png')), 4):
        file.write_bytes(b'no image')


class _Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.proof), 'w')


def _bad(lab: Lab, damage: Callable[[Path], object]) -> str:
    """Damages two images, which every process must replace and report."""
    data = lab.folder / 'data'
    write_pictures(data)
    files = lab.random.sample(sorted(data.rglob('*.png')), 2)
    for file in files:
        damage(file)
    ends = []
    for workers in (0, 2):
        output = lab.folder / f'run{workers}'
        run = lab.train(dataset=None, data_dir=data, max_bad_images=0.1, workers=workers, output=output)
        codes = run.wait()
        check.require(codes == [0], f'{codes} with {workers} workers: {run.said()[-2000:]}')
        unnamed = [str(file) for file in files if str(file) not in run.said()]
        check.require(not unnamed, f'{unnamed} are not named: {run.said()[-2000:]}')
        ends.append(check.digest(output / check.WEIGHTS))
    check.require(ends[0] == ends[1], 'the end depends on the number of workers')
    return COUNTED


def _bomb(side: int) -> bytes:
    """A PNG that claims to be of so many pixels a side."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b'')
