"""The table of a campaign, as Markdown and as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .kinds import KINDS
from .lab import INTERVAL, STEPS


@dataclass(frozen=True)
class Result:
    """What came of one injection.

    Attributes:
        kind: name of the fault.
        number: of the injection; with the seed it decides every choice.
        outcome: in words; what is wrong, where something is.
        good: whether all that must hold held.
        hang: whether a process had to be killed.
        lost: steps that were repeated.
        seconds: it took.
    """

    kind: str
    number: int
    outcome: str
    good: bool
    hang: bool
    lost: int
    seconds: float


def markdown(results: Sequence[Result], command: str) -> str:
    """The report as a page."""
    import torch

    bad = [result for result in results if not result.good]
    kinds = [name for name in KINDS if any(result.kind == name for result in results)]
    lines = [
        '# Faults injected',
        '',
        f'`{command}`: {len(results)} injections of {len(kinds)} kinds, {len(bad)} with a defect, '
        f'{sum(result.hang for result in results)} hangs. Tiny runs of {STEPS} steps with a checkpoint every '
        f'{INTERVAL}, one or two processes (gloo), torch {torch.__version__}, Python {platform.python_version()}, '
        f'{os.cpu_count()} cores.',
        '',
        'Every fault is triggered by progress (a step, an operation on a file), never by the clock. "Bit-identical" '
        'means: the weights of the net, the optimizer moments of the last checkpoint and `log.jsonl` are those of a '
        'run that was never disturbed. After each death all visible checkpoints must verify.',
        '',
        'To repeat an injection, give its name and number: '
        '`python -m tools.faults --seed SEED --kinds "NAME" --number NUMBER --keep`.',
        '',
        '| fault | times | steps repeated (most, allowed) | defects | outcome |',
        '|---|---:|---:|---:|---|',
    ]
    for kind in kinds:
        own = [result for result in results if result.kind == kind]
        good = dict.fromkeys(result.outcome for result in own if result.good)
        cells = (
            kind, len(own), f'{max(result.lost for result in own)}, {KINDS[kind].lost}',
            sum(not result.good for result in own), '; or '.join(good),
        )  # fmt: skip
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    if bad:
        lines += ['', '## Defects', '']
        lines += [f'- {result.kind} (injection {result.number}): {" ".join(result.outcome.split())}' for result in bad]
    return '\n'.join(lines) + '\n'


def write(results: Sequence[Result], command: str, file: Path) -> None:
    """Writes the page, and all results beside it as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(markdown(results, command), encoding='utf-8')
    rows = [asdict(result) for result in results]
    file.with_suffix('.json').write_text(json.dumps(rows, indent=1) + '\n', encoding='utf-8')
