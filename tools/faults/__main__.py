"""Injects faults into tiny training runs.

python -m tools.faults                                              every kind once, about two minutes on two cores
python -m tools.faults --injections 200 --report docs/results/faults.md
python -m tools.faults --kinds 'disk is full' --keep               some kinds; folders of defects stay
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from . import disks, evaluation, images, kills, numbers, refusals, restarts, signals, storage, teacher  # noqa: F401
from .check import Violation
from .kinds import KINDS
from .lab import Lab
from .launch import Hang
from .processes import adopt_orphans, fork, left_over
from .report import Result, write


def main() -> int:
    """Injects what the command line asks for; returns 1 where a defect was found."""
    arguments = _parse()
    plan = list(_plan(arguments.injections, arguments.kinds, arguments.seed))
    if arguments.number is not None:
        plan = [(name, arguments.number) for name in dict.fromkeys(name for name, _ in plan)]
    folder = Path(tempfile.mkdtemp(prefix='faults-', dir=arguments.folder))
    begin, results = time.monotonic(), []
    for result in _campaign(plan, folder, arguments):
        results.append(result)
        word = 'ok' if result.good else 'HANG' if result.hang else 'DEFECT'
        text = f'[{len(results)}/{len(plan)}] {word:6} {result.seconds:5.1f} s  {result.kind} ({result.number})'
        print(f'{text}: {result.outcome if arguments.keep else result.outcome[:200]}', flush=True)
    bad = sum(not result.good for result in results)
    print(f'{len(results)} injections, {bad} with a defect, {time.monotonic() - begin:.0f} s')
    if arguments.report:
        write(results, 'python -m tools.faults ' + shlex.join(sys.argv[1:]), arguments.report)
    if not (arguments.keep and bad):
        shutil.rmtree(folder)
    return int(bad > 0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='python -m tools.faults', description=__doc__.partition('\n')[0])
    parser.add_argument('--injections', type=int, help='how many, spread over the kinds (default: each kind once)')
    parser.add_argument('--kinds', nargs='+', default=[], help='only those whose name holds one of these words')
    parser.add_argument('--seed', type=int, default=0, help='of every choice')
    parser.add_argument('--number', type=int, help='only the injection of this number, to repeat it')
    parser.add_argument('--jobs', type=int, default=2, help='injections at a time')
    parser.add_argument('--folder', type=Path, help='where folders are made (default: the temporary one)')
    parser.add_argument('--keep', action='store_true', help='keep the folders of injections that found a defect')
    parser.add_argument('--report', type=Path, help='Markdown file; the same in JSON beside it')
    return parser.parse_args()


def _plan(injections: int | None, kinds: list[str], seed: int) -> Iterator[tuple[str, int]]:
    """Kinds and numbers of injections, in a random order."""
    exact, parts = ({word for word in kinds if (word in KINDS) == whole} for whole in (True, False))
    names = [name for name in KINDS if not kinds or name in exact or any(part in name for part in parts)]
    total = sum(KINDS[name].often for name in names)
    share = {name: max(1, math.ceil((injections or 0) * KINDS[name].often / total)) for name in names}
    plan = [(name, number) for name in names for number in range(share[name])]
    random.Random(seed).shuffle(plan)
    yield from plan


def _campaign(plan: list[tuple[str, int]], folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Runs each injection in a separate process, some at a time."""
    shared = folder / 'shared'
    shared.mkdir()
    waiting = plan[::-1]
    running: dict[int, Path] = {}
    while waiting or running:
        while waiting and len(running) < arguments.jobs:
            name, number = waiting.pop()
            own = folder / f'{len(plan) - len(waiting):04}'
            own.mkdir()
            running[fork(lambda: _inject(name, number, own, shared, arguments))] = own  # noqa: B023
        pid, _ = os.wait()
        own = running.pop(pid)
        result = Result(**json.loads((own / 'result.json').read_text()))
        if result.good or not arguments.keep:
            shutil.rmtree(own)
        yield result


def _inject(name: str, number: int, folder: Path, shared: Path, arguments: argparse.Namespace) -> int:
    """Runs one injection and writes its outcome."""
    adopt_orphans()
    lab = Lab(folder, shared, random.Random(f'{arguments.seed} {name} {number}'))
    begin, good, hang = time.monotonic(), False, False
    try:
        outcome = KINDS[name].inject(lab)
        left = left_over(patience=10)
        good = lab.lost <= KINDS[name].lost and not left
        outcome += f', but {left} did not end' if left else ''
    except Hang as error:
        outcome, hang = str(error), True
    except Violation as error:
        outcome = str(error)
    except Exception:
        outcome = traceback.format_exc()
    left_over(patience=0)
    seconds = round(time.monotonic() - begin, 1)
    result = Result(name, number, outcome, good, hang, lab.lost, seconds)
    (folder / 'result.json').write_text(json.dumps(asdict(result)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
