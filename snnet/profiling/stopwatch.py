"""A stopwatch for many calls on a machine that may also be busy with other work."""

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
from ..utils.typed_json import read_json
from .memory import peak_memory

_log = logging.getLogger(__name__)
Call = Callable[[], Tensor]

LEAST_VISITS, MOST_VISITS = 7, 40
CALLS, CALL_SECONDS = 5, 0.1
"""Most timed calls of a visit, and how long they may take together; a visit has at least one."""
PRECISION = 0.02
"""A call needs no more visits when half the width of its median's confidence interval is this share of the median."""
_SAVE_SECONDS = 2.0


class StopWatch:
    """Times named calls in rounds.

    Each round visits all calls in a new random order, so that other work on the machine and a warming processor affect
    all of them alike. A visit is one untimed call, which fills the caches as repeated calls on a server would, and a
    few timed ones. Rounds continue until each median is known to `PRECISION`. (torch.utils.benchmark.Timer was not
    used: it times one statement after another, reports means of blocks, which hide the spread, and cannot be resumed.)

    Args:
        device: the device that the calls run on; it is synchronized before and after each call.
        file: keeps the times, so that an interrupted measurement resumes; None keeps nothing.
        facts: what times in the file must have been measured for; times with other facts are discarded.
        seed: seed of the order of the visits.
        seconds: time limit. After it, every call still gets one visit, and none gets more.

    Attributes:
        visits: for each name, the milliseconds of the timed calls of each visit.
        memory: peak bytes of each call.
        firsts: milliseconds of an early call, as a rough estimate.
    """

    def __init__(
        self, device: torch.device, file: Path | None, facts: Mapping[str, Any], seed: int, seconds: float = math.inf
    ) -> None:
        self.device, self.file, self.seed = device, file, seed
        self.facts = json.loads(json.dumps(facts))
        self.visits: dict[str, list[list[float]]] = {}
        self.memory: dict[str, int] = {}
        self.firsts: dict[str, float] = {}
        self._saved = time.monotonic()
        self._end = self._saved + seconds
        if file is not None:
            self._resume(file)

    def first(self, name: str, call: Call) -> None:
        """Measures memory and a rough time of a call, unless they are known already."""
        if name not in self.memory:
            call()
            self.firsts[name] = self._milliseconds(call)
            self.memory[name] = peak_memory(call, self.device)
            self._save_in_time()

    def time(self, calls: Mapping[str, Call], progress: Progress) -> None:
        """Visits the calls in rounds until their medians are known, or the limits on visits or time are reached."""
        for name, call in calls.items():
            if not self.settled(name):
                call()
        while left := [name for name in calls if self._needs_visit(name)]:
            place = min(len(self.visits.get(name, ())) for name in left)
            random.Random(key(self.seed, 'order of visits', place)).shuffle(left)
            for name in filter(self._needs_visit, left):
                self.visits.setdefault(name, []).append(self._visit(calls[name]))
                late = len(self.visits[name]) >= LEAST_VISITS and not self.settled(name)
                progress.expect(int(late))
                progress.update(1, f'round {place + 1}')
                self._save_in_time()

    def _needs_visit(self, name: str) -> bool:
        if time.monotonic() > self._end:
            return name not in self.visits
        return not self.settled(name)

    def settled(self, name: str) -> bool:
        """Whether the median of a call is known to `PRECISION`, or it has had `MOST_VISITS`."""
        medians = [statistics.median(times) for times in self.visits.get(name, ())]
        if not LEAST_VISITS <= len(medians) < MOST_VISITS:
            return len(medians) >= MOST_VISITS
        middle = statistics.median(medians)
        deviation = 1.4826 * statistics.median(abs(x - middle) for x in medians)
        return 1.96 * 1.2533 * deviation / math.sqrt(len(medians)) <= PRECISION * middle

    def visits_left(self, names: Sequence[str]) -> int:
        """Returns how many more visits these calls need at least."""
        return sum(max(0 if self.settled(n) else 1, LEAST_VISITS - len(self.visits.get(n, ()))) for n in names)

    def quantiles(self, name: str) -> tuple[float, float, float]:
        """Returns the 10 % quantile, median and 90 % quantile of all timed calls of a name, in milliseconds."""
        times = sorted(ms for visit in self.visits[name] for ms in visit)
        tenths = statistics.quantiles(times, n=10, method='inclusive') if len(times) > 1 else times
        return tenths[0], statistics.median(times), tenths[-1]

    def save(self) -> None:
        """Writes all times to the file."""
        if self.file is not None:
            known = {'visits': self.visits, 'memory': self.memory, 'firsts': self.firsts}
            write_text(self.file, json.dumps({'facts': self.facts, **known}))
        self._saved = time.monotonic()

    def forget(self) -> None:
        """Removes the file."""
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

    def _resume(self, file: Path) -> None:
        try:
            found = read_json(file)
            if found['facts'] == self.facts:
                visits = {n: [[_time(ms) for ms in visit] for visit in v if visit] for n, v in found['visits'].items()}
                memory = {name: int(size) for name, size in found['memory'].items()}
                firsts = {name: _time(found['firsts'][name]) for name in memory}
                self.visits, self.memory, self.firsts = visits, memory, firsts
        except FileNotFoundError:
            return
        except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
            _log.warning('%s is damaged, so its times are measured again: %s', file, error)


def _time(value: Any) -> float:
    """Milliseconds, positive and finite."""
    milliseconds = float(value)
    if not 0 < milliseconds < math.inf:
        raise ValueError(f'{milliseconds} is not a time')
    return milliseconds


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all its work."""
    if device.type != 'cpu':
        torch.accelerator.synchronize(device)
