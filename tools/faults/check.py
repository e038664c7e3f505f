"""What must hold for a run's folder after a fault, written without the package under test."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

KEPT = 4
"""The three newest checkpoints and the best."""
WEIGHTS = Path('net') / 'model.safetensors'


class Violation(Exception):
    """Something that must hold does not."""


def require(condition: bool, sentence: str) -> None:
    """Raises a `Violation` unless the condition holds."""
    if not condition:
        raise Violation(sentence)


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by relative path; logs in plain words are left out."""
    files = (path for path in sorted(folder.rglob('*')) if path.is_file() and path.name != 'train.log')
    return {str(path.relative_to(folder)): digest(path) for path in files}


def checkpoints(output: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((output / 'checkpoints').glob('step-*'))


def verifies(checkpoint: Path) -> bool:
    """Whether a checkpoint holds exactly the files of its manifest, with their digests."""
    try:
        lines = (checkpoint / 'SHA256SUMS').read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    listed = {line[66:]: line[:64] for line in lines}
    found = {path.name: digest(path) for path in checkpoint.iterdir() if path.name != 'SHA256SUMS'}
    return bool(listed) and listed == found


def sound(output: Path) -> None:
    """A run's folder holds no broken artefact, whatever happened to the run.

    Raises:
        Violation: a visible checkpoint does not verify, a net is not whole, or a log line other than the last is torn.
    """
    for checkpoint in checkpoints(output):
        require(verifies(checkpoint), f'{checkpoint.name} does not verify')
    if (output / WEIGHTS).exists():
        load_file(output / WEIGHTS)
    log = output / 'log.jsonl'
    if log.exists():
        for line in log.read_text().splitlines()[:-1]:
            json.loads(line)


def whole(output: Path, reference: Path) -> None:
    """A finished run's folder equals that of a run that was never stopped, and nothing is left over.

    Raises:
        Violation: weights, log, or the last checkpoint differ, or temporary files are left.
    """
    sound(output)
    _same(output / WEIGHTS, reference / WEIGHTS)
    _same(output / 'log.jsonl', reference / 'log.jsonl')
    held = len(checkpoints(output))
    require(held <= KEPT, f'{held} checkpoints are kept, more than the newest and the best')
    last, expected = checkpoints(output)[-1], checkpoints(reference)[-1]
    require(last.name == expected.name, f'the last checkpoint is {last.name}, not {expected.name}')
    _same(last / 'state.safetensors', expected / 'state.safetensors')
    tidy(output)


def tidy(output: Path) -> None:
    """No temporary files are left.

    Raises:
        Violation: some are.
    """
    left = [str(path.relative_to(output)) for path in output.rglob('.*') if path.name != '.lock']
    require(not left, f'left over: {", ".join(left)}')


def finite(output: Path) -> None:
    """Checkpoints and net hold finite numbers only.

    Raises:
        Violation: one does not.
    """
    files = [checkpoint / 'state.safetensors' for checkpoint in checkpoints(output)]
    for file in [*files, output / WEIGHTS]:
        if file.exists():
            for name, values in load_file(file).items():
                require(bool(np.isfinite(values).all()), f'{file.parent.name}/{file.name}: {name} is not finite')


def sentence(said: str, *words: str) -> str:
    """The message of a script that stopped with exit status 2: its last line, which must hold these words.

    Raises:
        Violation: there is a traceback, or no such line.
    """
    require('Traceback' not in said, f'a traceback: {said[-3000:]}')
    lines = [line for line in said.splitlines() if line.startswith(('train.py: ', 'eval_stitches.py: '))]
    require(bool(lines), f'no sentence: {said[-1500:]}')
    missing = [word for word in words if word not in lines[-1]]
    require(not missing, f'the sentence does not name {missing}: {lines[-1]}')
    return lines[-1]


def _same(file: Path, expected: Path) -> None:
    require(file.exists(), f'{file.parent.name}/{file.name} is missing')
    require(digest(file) == digest(expected), f'{file.parent.name}/{file.name} differs from the undisturbed run')
