"""A stop-watch for many calls on a machine that others use as well, and the memory that a call needs."""

from __future__ import annotations

import json
import logging
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.files import write_text
from ..utils.progress import Progress
from ..utils.seeds import key
from .memory import peak_memory

_log = logging.getLogger(__name__)
Call = Callable[[], Tensor]

LEAST_VISITS, MOST_VISITS = 7, 40
CALLS, CALL_SECONDS = 5, 0.1
"""Most timed calls of a visit, and how long they may take together; a visit has one at least."""
PRECISION = 0.02
"""Half the width of a median's confidence interval, as a share of it, at which a call needs no more visits."""
_SAVE_SECONDS = 2.0


class StopWatch:
    """Times of named calls, each as the milliseconds of the calls of every visit.

    All calls are visited once a round, in an order drawn anew, so that a busy neighbor or a warm processor is spread
    over all of them. A visit is one call that is not timed (the caches then hold what a server's would that repeats the
    call) and a few that are. Rounds go on until each median is known to `PRECISION`. (torch.utils.benchmark's Timer
    times one statement after another, in blocks whose mean hides the spread, and cannot be taken up again.)

    Args:
        device: where the calls run; it is waited for at both ends of a call.
        file: keeps the times, so that a watch that was stopped anywhere goes on where it was; none where None.
        facts: what times in the file must belong to; those of other facts are dropped.
        seed: keys the order of the visits.
    """

    def __init__(self, device: torch.device, file: Path | None, facts: Mapping[str, Any], seed: int) -> None:
        self.device, self.file, self.seed = device, file, seed
        self.facts = json.loads(json.dumps(facts))
        self.visits: dict[str, list[list[float]]] = {}
        self.memory: dict[str, int] = {}
        self.firsts: dict[str, float] = {}
        self._saved = time.monotonic()
        if file is not None:
            self._take_up(file)

    def first(self, name: str, call: Call) -> None:
        """Notes memory and rough time of a call, where they are not known yet."""
        if name not in self.memory:
            call()
            self.firsts[name] = self._milliseconds(call)
            self.memory[name] = peak_memory(call, self.device)
            self._save_in_time()

    def time(self, calls: Mapping[str, Call], progress: Progress) -> None:
        """Visits the calls, in rounds, until their medians are known or they had their share of visits."""
        for name, call in calls.items():
            if not self.settled(name):
                call()
        while left := [name for name in calls if not self.settled(name)]:
            place = min(len(self.visits.get(name, ())) for name in left)
            random.Random(key(self.seed, 'order of visits', place)).shuffle(left)
            for name in left:
                self.visits.setdefault(name, []).append(self._visit(calls[name]))
                late = len(self.visits[name]) >= LEAST_VISITS and not self.settled(name)
                progress.expect(int(late))
                progress.update(1, f'round {place + 1}')
                self._save_in_time()

    def settled(self, name: str) -> bool:
        """Whether a call needs no more visits."""
        medians = [statistics.median(times) for times in self.visits.get(name, ())]
        if not LEAST_VISITS <= len(medians) < MOST_VISITS:
            return len(medians) >= MOST_VISITS
        middle = statistics.median(medians)
        deviation = 1.4826 * statistics.median(abs(x - middle) for x in medians)
        return 1.96 * 1.2533 * deviation / math.sqrt(len(medians)) <= PRECISION * middle

    def visits_left(self, names: Sequence[str]) -> int:
        """How many visits some calls need at least."""
        return sum(max(0 if self.settled(n) else 1, LEAST_VISITS - len(self.visits.get(n, ()))) for n in names)

    def quantiles(self, name: str) -> tuple[float, float, float]:
        """10 % quantile, median and 90 % quantile of all timed calls of a name, in milliseconds."""
        times = sorted(ms for visit in self.visits[name] for ms in visit)
        tenths = statistics.quantiles(times, n=10, method='inclusive')
        return tenths[0], statistics.median(times), tenths[-1]

    def save(self) -> None:
        """Writes what is known to the file."""
        if self.file is not None:
            known = {'visits': self.visits, 'memory': self.memory, 'firsts': self.firsts}
            write_text(self.file, json.dumps({'facts': self.facts, **known}))
        self._saved = time.monotonic()

    def forget(self) -> None:
        """Removes the file, once what it was kept for is done."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def _visit(self, call: Call) -> list[float]:
        self._milliseconds(call)
        times = [self._milliseconds(call)]
        count = min(CALLS, int(CALL_SECONDS * 1e3 / max(times[0], 1e-6)))
        return times + [self._milliseconds(call) for _ in range(count - 1)]

    def _milliseconds(self, call: Call) -> float:
        synchronize(self.device)
        begin = time.perf_counter()
        call()
        synchronize(self.device)
        return 1e3 * (time.perf_counter() - begin)

    def _save_in_time(self) -> None:
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def _take_up(self, file: Path) -> None:
        try:
            found = json.loads(file.read_text(encoding='utf-8'))
            if found['facts'] == self.facts:
                visits = {n: [[float(ms) for ms in visit] for visit in v if visit] for n, v in found['visits'].items()}
                memory = {name: int(size) for name, size in found['memory'].items()}
                firsts = {name: float(found['firsts'][name]) for name in memory}
                self.visits, self.memory, self.firsts = visits, memory, firsts
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning('%s is damaged, so its times are measured anew: %s', file, error)


def synchronize(device: torch.device) -> None:
    """Waits until a device has done what it was given."""
    if device.type != 'cpu':
        torch.accelerator.synchronize(device)
