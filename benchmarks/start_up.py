"""CPU seconds of `import snnet`, `snnet --help` and `train.py --help`, here and in another checkout.

    python benchmarks/start_up.py [OTHER_CHECKOUT] [--pairs 5]

Each is a fresh process. Those of both checkouts take turns, and the median of the ratios is printed.
"""

from __future__ import annotations

import argparse
import configparser
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

COMMANDS = {
    'import snnet': ['-c', 'import snnet'],
    'snnet --help': [],
    'train.py --help': ['train.py', '--help'],
}


def snnet_help(folder: Path) -> list[str]:
    """What the installed command `snnet --help` of a checkout runs."""
    setup = configparser.ConfigParser()
    setup.read(folder / 'setup.cfg')
    module, function = setup['options.entry_points']['console_scripts'].split('=')[1].strip().split(':')
    return ['-c', f"import sys; sys.argv = ['snnet', '--help']; from {module} import {function}; {function}()"]


def cpu_seconds(folder: Path, arguments: list[str]) -> float:
    """User and system time of a Python process in a checkout."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    subprocess.run(
        [sys.executable, '-W', 'ignore', *(arguments or snnet_help(folder))],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(folder)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return used() - before


def main() -> None:
    """Prints a line per command."""
    parser = argparse.ArgumentParser(description='Measures how long starting takes.')
    parser.add_argument('other', type=Path, nargs='?', help='another checkout to compare with')
    parser.add_argument('--pairs', type=int, default=5)
    args = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    folders = [here, *([args.other.resolve()] if args.other else [])]
    for what, arguments in COMMANDS.items():
        for folder in folders:
            cpu_seconds(folder, arguments)  # compiles and caches
        rows = [[cpu_seconds(folder, arguments) for folder in folders] for _ in range(args.pairs)]
        line = f'{what:16} {statistics.median(row[0] for row in rows):6.2f} CPU seconds'
        if args.other:
            ratio = statistics.median(other / own for own, other in rows)
            line += f', there {statistics.median(row[1] for row in rows):6.2f}: {ratio:.1f} times as much'
        print(line, flush=True)


if __name__ == '__main__':
    main()
