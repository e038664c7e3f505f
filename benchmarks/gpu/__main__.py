"""Proves and measures on a GPU what was written for one, in parts of limited time, the most valuable first.

    python -m benchmarks.gpu --out output/gpu --data ../shared/data/cifar10
    python -m benchmarks.gpu --out output/gpu --tiny --device cpu      (the same code on tiny networks)
    python -m benchmarks.gpu --out output/gpu --parts 5 --minutes 8    (the family alone)

Each part runs in a process of its own. What it finds is written to OUT/gpu.json and OUT/gpu.md at once, so a run that
is cut keeps what it had. A part that fails or exceeds its limit is noted with a sentence, and the next one runs. Time
that a part leaves over goes to the later ones.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from benchmarks.gpu.book import Book
from benchmarks.gpu.part import PARTS, Options, run_part


def main() -> int:
    """Runs the parts; returns how many failed or were cut."""
    parser = argparse.ArgumentParser(description='Everything that was written for a GPU, proven and measured.')
    parser.add_argument('--out', type=Path, required=True, help='folder for the results')
    parser.add_argument('--minutes', type=float, default=9.0, help='time for all parts together')
    parser.add_argument('--parts', type=int, nargs='+', choices=range(1, len(PARTS) + 1), help='default: all of them')
    parser.add_argument('--data', type=Path, help='folder of the CIFAR-10 sprites (default: generated images)')
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--tiny', action='store_true', help='tiny networks: shows that the script works')
    args = parser.parse_args()
    if args.data is not None and not args.data.is_dir():
        parser.error(f'--data {args.data} is not a folder')
    if args.minutes <= 0:
        parser.error(f'--minutes is a positive number, not {args.minutes:g}')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the part under way is ended and noted
    args.out.mkdir(parents=True, exist_ok=True)
    options = Options(args.device, args.tiny, str(args.out.resolve()), str(args.data.resolve()) if args.data else '')
    chosen = sorted(set(args.parts or range(1, len(PARTS) + 1)))
    end = time.monotonic() + 60 * args.minutes
    book = Book(args.out, ' '.join(['python -m benchmarks.gpu', *sys.argv[1:]]))
    for number in chosen:
        weights = [PARTS[later - 1].weight for later in chosen if later >= number]
        limit = max(end - time.monotonic(), 0) * weights[0] / sum(weights)
        run_part(number, PARTS[number - 1], options, book, limit)
    print(f'wrote {book.json} and {book.markdown}', flush=True)
    return book.failures


if __name__ == '__main__':
    sys.exit(main())
