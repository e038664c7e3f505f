"""Disks without room, folders that cannot be written, and folders that vanish."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import check
from .kinds import STOPPED, kind
from .lab import STEPS, Lab


@kind('no room for files of a checkpoint for some steps', often=6)
def limit(lab: Lab) -> str:
    """A limit on file size stands in for a full disk. The run continues without these checkpoints."""
    world, at = lab.random.choice((1, 2)), lab.random.randrange(STEPS - 8)
    lab.fault('step', 'limit', at=at, value=lab.random.randrange(20_000, 1_000_000))
    lab.fault('step', 'limit', at=at + 7)
    run = lab.train(world)
    codes = run.wait()
    check.require(not any(codes), f'{codes}: {run.said()[-2000:]}')
    check.require('bytes' in run.said(), f'no warning that names bytes: {run.said()}')
    check.whole(lab.output, lab.reference(world))
    return 'warned, went on; bit-identical end'


@kind('the disk is full for some steps', often=4)
def full_disk(lab: Lab) -> str:
    """A small file system is filled to the last byte and emptied again."""
    with _small_disk(lab, megabytes=64) as disk:
        if disk is None:
            return 'left out: only root can mount'
        at = lab.random.randrange(STEPS - 8)
        first, second = (lab.fault('step', 'pause', at=step) for step in (at, at + 7))
        run = lab.train(output=disk / 'run')
        run.reached(first)
        ballast = disk / 'ballast'
        _fill(ballast)
        run.release(first)
        run.reached(second)
        ballast.unlink()
        run.release(second)
        codes = run.wait()
        check.require(codes == [0], f'{codes}: {run.said()[-2000:]}')
        check.whole(disk / 'run', lab.reference())
    return 'warned, went on; bit-identical end'


@kind('the disk is full from some step on', often=3, lost=STEPS)
def full_disk_at_end(lab: Lab) -> str:
    """There is no room for the net either. The run stops with a message, and continues once there is room."""
    with _small_disk(lab, megabytes=64) as disk:
        if disk is None:
            return 'left out: only root can mount'
        first = lab.fault('step', 'pause', at=lab.random.randrange(STEPS))
        run = lab.train(output=disk / 'run')
        run.reached(first)
        _fill(disk / 'ballast')
        run.release(first)
        codes = run.wait()
        check.require(codes == [2], f'{codes}: {run.said()[-2000:]}')
        check.sentence(run.said())
        check.sound(disk / 'run')
        (disk / 'ballast').unlink()
        run = lab.train(output=disk / 'run')
        codes = run.wait()
        check.require(codes == [0], f'{codes}: {run.said()[-2000:]}')
        check.whole(disk / 'run', lab.reference())
    return STOPPED


@kind('the folder cannot be written', often=2)
def read_only(lab: Lab) -> str:
    """The run refuses to start, before its first step."""
    folder = lab.folder / 'disk'
    with _small_disk(lab, megabytes=64) as disk:
        if disk is None:
            folder.chmod(0o500)  # root alone could write here all the same, and root can mount
        else:
            subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
        run = lab.train(lab.random.choice((1, 2)), output=folder / 'run')
        codes = run.wait()
        if disk is None:
            folder.chmod(0o700)
    check.require(codes[0] == 2 and all(codes), f'{codes}: {run.said()[-2000:]}')
    check.sentence(run.said())
    check.require(not lab.steps(), 'steps were trained')
    return 'refused with a sentence before the first step'


@kind('the folder vanishes', often=2, lost=STEPS)
def vanish(lab: Lab) -> str:
    """The folder is removed while the run writes to it."""
    marker = lab.fault('step', 'pause', at=lab.random.randrange(STEPS))
    run = lab.train()
    run.reached(marker)
    shutil.rmtree(lab.output)
    run.release(marker)
    codes = run.wait()
    check.require(codes in ([0], [2]), f'{codes}: {run.said()[-2000:]}')
    if codes == [2]:
        check.sentence(run.said())
    check.sound(lab.output)
    shutil.rmtree(lab.output, ignore_errors=True)
    (lab.folder / 'trace').unlink()
    lab.finish()
    return 'stopped with a sentence' if codes == [2] else 'went on'


def _fill(ballast: Path) -> None:
    """Fills a disk to the last byte."""
    with open(ballast, 'wb', buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


@contextmanager
def _small_disk(lab: Lab, megabytes: int) -> Iterator[Path | None]:
    """A separate file system, where this process may mount one."""
    disk = lab.folder / 'disk'
    disk.mkdir()
    if os.geteuid() != 0:
        yield None
        return
    made = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs', disk], capture_output=True)
    if made.returncode:
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(['umount', '--lazy', disk], check=True)
