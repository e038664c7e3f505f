"""Microseconds per decision of the controller while many requests wait, beside the straightforward way.

    PYTHONPATH=. python benchmarks/controller_queue.py

71 stitches, batches of up to 16. `submit` is one more request with the latest deadline, `urgent` one with the earliest,
`next` the choice of a batch. Each number is the median of several calls from the same state, so nothing is remembered
from one to the next. Patterns:

    loose      deadlines far apart, twice the time that is needed
    burst      one deadline for all
    tight      full batches need 99.9 % of the time until each deadline
    busy       as tight, while a batch runs
    mixed      as loose, and every tenth request asks for more accuracy
    tense      every tenth request asks for more accuracy, and hardly more time than full batches need
    late       as tense, with half the time, so that many cannot be answered
    various    requests ask for 71 accuracies, and there is hardly more time than they need
    scarce     as various, with a little less time than they need
    hopeless   as various, with half the time
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType

from snnet.serve import Choice, Choices, Request, controller
from snnet.serve.recent_load import Load
from snnet.serve.waiting_queue import WaitingQueue
from tests.serve import straightforward

STITCHES, MOST = 71, 16
PATTERNS = {
    'loose': ('any', 2.0),
    'burst': ('any', 2.0),
    'tight': ('any', 1.001),
    'busy': ('any', 1.001),
    'mixed': ('tenth', 8.0),
    'tense': ('tenth', 1.2),
    'late': ('tenth', 0.6),
    'various': ('each', 1.2),
    'scarce': ('each', 1.0),
    'hopeless': ('each', 0.5),
}
"""Which requests ask for an accuracy, and the time until each deadline as a multiple of what full batches of requests
that ask for the same would take."""


def family() -> Choices:
    """Stitches from 1.6 to 17.5 ms for one image, with 0.5 ms per batch."""
    gflops = [1.08 + 16 * i / (STITCHES - 1) for i in range(STITCHES)]
    return Choices(
        Choice(i, 70 + i / 7, (0.0, *(0.0005 + 0.001 * cost * size for size in range(1, MOST + 1))))
        for i, cost in enumerate(gflops)
    )


def waiting(ways: ModuleType, choices: Choices, pattern: str, count: int) -> controller.ControllerState:
    """A state with `count` waiting requests at time 0, after a calm."""
    draws = random.Random(1)
    kind, tightness = PATTERNS[pattern]
    kinds = {
        'any': [0.0],
        'tenth': [0.0] * 9 + [choices.choices[10].top1],
        'each': [choice.top1 for choice in choices.choices],
    }
    least = [draws.choice(kinds[kind]) for _ in range(count)]
    shares = [choices.fast[choices.floor(top1) or 0][MOST] / MOST for top1 in least]
    first = choices.fast[0][MOST]
    deadlines = [tightness * (work + first) for work in itertools.accumulate(shares)]
    if pattern == 'burst':
        deadlines = [deadlines[-1]] * count
    state = controller.ControllerState.initial(choices)
    load = Load.expected(1.0, choices.capacity).seen(0.0, deadlines[-1])._replace(peaks=(1.0,) * 8)
    queue = WaitingQueue.of(choices, map(Request, range(count), deadlines, least))
    state = replace(state, now=0.0, queue=queue, load=load)
    if pattern == 'busy':
        state, _ = ways.decide(choices, state, 0.0)
    return state


def microseconds(call: Callable[[], object], seconds: float) -> float:
    """Median time of a call over about so many seconds, at least three calls."""
    spent: list[float] = []
    while len(spent) < 3 or sum(spent) < seconds:
        begin = time.perf_counter()
        call()
        spent.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description='Times the decisions of the controller over the length of its queue.')
    parser.add_argument('--counts', type=int, nargs='+', default=[100, 300, 1000, 3000, 10000])
    parser.add_argument('--seconds', type=float, default=0.1, help='for each number')
    args = parser.parse_args()
    choices = family()
    print(
        f'{"pattern":<8}{"waiting":>8}' + ''.join(f'{name:>10}{"before":>10}' for name in ('submit', 'urgent', 'next'))
    )
    for pattern in PATTERNS:
        for count in args.counts:
            columns: list[float] = []
            states = [(ways, waiting(ways, choices, pattern, count)) for ways in (controller, straightforward)]
            for action in ('submit', 'urgent', 'next'):
                for ways, state in states:
                    last = 2 * count * choices.fast[0][MOST] / MOST + 1.0
                    request = Request('new', last if action == 'submit' else 0.9 * choices.fast[0][MOST])
                    if action == 'next':
                        call = partial(ways.decide, choices, state, 0.0)
                    else:
                        call = partial(ways.admit, choices, state, request, 0.0)
                    columns.append(microseconds(call, args.seconds))
            print(f'{pattern:<8}{count:>8}' + ''.join(f'{value:>10.0f}' for value in columns), flush=True)


if __name__ == '__main__':
    main()
