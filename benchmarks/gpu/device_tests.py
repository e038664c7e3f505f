"""Part 1: the tests with the marker `gpu`, on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.part import COMPILING, Options, Report

ROOT = Path(__file__).parents[2]
FIRST, LAST = ['test_running.py', 'test_training.py'], 'test_compiling.py'
"""Files of tests in the order of their worth; what compiles may take the rest of the time."""


class _Watch:
    """Passes the outcome of every test on as soon as it is known."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.counts = {'passed': 0, 'failed': 0, 'skipped': 0}

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if item.path.name == LAST and self.report.seconds_left < COMPILING:
            pytest.skip(f'{self.report.seconds_left:.0f} s are left, too few to compile')

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != 'call' and report.passed:
            return
        self.counts[report.outcome] += 1
        name = report.nodeid.rpartition('::')[2]
        if report.passed:
            self.report.row('tests', test=name, outcome='passed', seconds=round(report.duration, 2))
            return
        reason: Any = report.longrepr
        text = reason[2] if isinstance(reason, tuple) else str(reason)
        last = [line for line in text.splitlines() if line.startswith('E ')] or text.strip().splitlines()[-1:]
        said = ' '.join(last[:2]).removeprefix('E').strip()[:300]
        self.report.row('tests', test=name, outcome=report.outcome, seconds=round(report.duration, 2), reason=said)


def run(options: Options, report: Report) -> None:
    """Runs them in this process; a failed test fails the part."""
    watch = _Watch(report)
    # versions of the libraries other than those of CI warn of other things, which is no error here
    arguments = ['-m', 'gpu', '--device', options.device, '-o', 'filterwarnings=default', '--tb', 'short']
    folder = ROOT / 'tests' / 'gpu'
    others = sorted({path.name for path in folder.glob('test_*.py')} - {*FIRST, LAST})
    files = [str(folder / name) for name in (*FIRST, *others, LAST)]
    code = pytest.main([*files, '-q', '--rootdir', str(ROOT), *arguments], plugins=[watch])
    report.note(', '.join(f'{count} {outcome}' for outcome, count in watch.counts.items()))
    if code != 0:
        raise RuntimeError(f'pytest ended with {pytest.ExitCode(code).name}, {watch.counts["failed"]} tests failed')
