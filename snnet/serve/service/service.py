"""Nets behind one worker: starts, admits requests, swaps nets, drains."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ...errors import SnnetError
from ..stitch_choices import Choices
from ..time_correction import MOST_FACTOR
from .delivery import TO_THREADS, Delivery
from .demand import Demand
from .measure_tables import measure_tables, tables_here
from .refusal import Refusal
from .served_net import ServedNet
from .spare_memory import give_back
from .ticket import Apart
from .worker import Worker

_log = logging.getLogger(__name__)
WATCH_SECONDS = 0.1
"""Time between two looks at the worker."""
GIVE_BACK_SECONDS = 30.0
"""Shortest time between two moments at which spare memory is given back; threads that allocate wait meanwhile."""
State = Literal['starting', 'ready', 'draining', 'broken']


@dataclass(frozen=True)
class ServicePlan:
    """How a service measures and admits.

    Attributes:
        deadline_ms: deadline of requests that name none.
        longest_ms: longest deadline that a request may name.
        largest_batch: most images in a batch, where latency is measured here.
        warmup_seconds: time limit of that measurement.
        hang_seconds: shortest time after which a batch counts as hanging.
    """

    deadline_ms: float = 50.0
    longest_ms: float = 60_000.0
    largest_batch: int = 16
    warmup_seconds: float = 30.0
    hang_seconds: float = 2.0


class Service:
    """Nets behind one worker. Threads may call every method.

    Args:
        nets: the nets, with distinct names.
        plan: how to measure and admit.
        load: loads the net of a name again, as the given version, for `reload`.
        isolate: makes the process in which a net computes; None where it computes in the worker's thread.
        clock: monotonic seconds.

    Attributes:
        state: 'starting' until the latency tables are there, 'ready', 'draining', or 'broken' if the start failed.
        failure: why the start failed.
    """

    def __init__(
        self,
        nets: Sequence[ServedNet],
        plan: ServicePlan | None = None,
        load: Callable[[str, int], ServedNet] | None = None,
        clock: Callable[[], float] = time.monotonic,
        isolate: Callable[[ServedNet], Apart] | None = None,
    ) -> None:
        self.plan = plan or ServicePlan()
        self.nets = {served.name: served for served in nets}
        self.worker = Worker(self.plan.hang_seconds, clock)
        self.clock = clock
        self.state: State = 'starting'
        self.failure: SnnetError | None = None
        self._load, self._isolate = load, isolate
        self._retired: list[Apart] = []
        self._stop = threading.Event()
        self._reloading = threading.Lock()

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self.state == 'ready' and self.worker.healthy

    def start(self) -> None:
        """Measures what is missing, warms up, and starts the worker. Takes as long as that takes.

        Raises:
            SnnetError: a net cannot be served, or the default deadline is below what the fastest stitch takes.
        """
        try:
            for served in self.nets.values():
                self._prepare(served)
                self._check_deadline(served)
        except SnnetError as error:
            self.state, self.failure = 'broken', error
            raise
        self.worker.start()
        threading.Thread(target=self._watch, name='snnet watch', daemon=True).start()
        if self.state == 'starting':
            self.state = 'ready'

    def net(self, name: str | None) -> ServedNet:
        """The net of a name; without a name, the first one.

        Raises:
            Refusal: there is no net of this name.
        """
        if name is None:
            return next(iter(self.nets.values()))
        if name not in self.nets:
            raise Refusal('unknown', f"there is no net '{name[:100]}', only {', '.join(self.nets)}")
        return self.nets[name]

    def check(self, served: ServedNet, demand: Demand, arrived: float, reserve: float = 0.0) -> None:
        """Refuses early, before any work on a request, what would be refused later.

        Args:
            served: the net.
            demand: what the request asks for.
            arrived: when it arrived, on the clock.
            reserve: seconds before its deadline at which its batch has to be done.

        Raises:
            Refusal: the demand cannot be met, now or ever.
        """
        queue, choices = self._queue_of(served, demand)
        deadline = arrived + demand.deadline_ms / 1000 - reserve
        if not self.worker.could_admit(queue, choices, 1, deadline, demand.min_top1):
            raise self._late(demand, choices)

    def check_time(self, served: ServedNet, demand: Demand, arrived: float, reserve: float = 0.0) -> None:
        """Refuses a request that is too old, without a look at what waits: this costs next to nothing.

        Raises:
            Refusal: not even the fastest stitch would answer in time.
        """
        self.check_open()
        least = served.choices.fast[0][1] / MOST_FACTOR
        if arrived + demand.deadline_ms / 1000 - reserve - self.clock() < least:
            raise self._late(demand, served.choices)

    def submit(
        self,
        served: ServedNet,
        images: Sequence[Tensor],
        demand: Demand,
        arrived: float,
        delivery: Delivery = TO_THREADS,
        reserve: float = 0.0,
    ) -> list[Any]:
        """Admits the images of a request, all or none, and returns their future answers (`ImageAnswer`).

        Args:
            served: the net.
            images: each (C, H, W), prepared.
            demand: what the request asks for.
            arrived: when it arrived, on the clock.
            delivery: makes the futures, and settles them.
            reserve: seconds before its deadline at which its batch has to be done.

        Raises:
            Refusal: the demand cannot be met.
        """
        queue, choices = self._queue_of(served, demand)
        deadline = arrived + demand.deadline_ms / 1000 - reserve
        run = served.process or served.run
        futures = self.worker.submit(queue, choices, images, run, deadline, demand.min_top1, delivery)
        if futures is None:
            raise self._late(demand, choices)
        return futures

    def drain(self) -> None:
        """Refuses new requests from now on; those that were admitted are still answered."""
        if self.state != 'broken':
            self.state = 'draining'

    def close(self) -> None:
        """Ends the threads."""
        self.drain()
        self._stop.set()
        self.worker.close()
        for process in (*(served.process for served in self.nets.values()), *self._retired):
            if process is not None:
                process.close()

    def reload(self, name: str) -> ServedNet:
        """Swaps a net for what its folder holds now. Requests that wait are answered by the old one.

        Raises:
            SnnetError: the new net is damaged or cannot be served, another reload is going on, or nothing can be
                loaded here; the old net stays.
            Refusal: there is no net of this name.
        """
        old = self.net(name)
        if self._load is None:
            raise SnnetError('this service was built from nets in memory, so there is nothing to load again')
        if not self._reloading.acquire(blocking=False):
            raise SnnetError('another reload is going on: try again when it is done')
        try:
            fresh = self._load(name, old.version + 1)
            self._prepare(fresh)
            self.nets = {**self.nets, name: fresh}
            if old.process is not None:
                self._retired.append(old.process)
        finally:
            self._reloading.release()
        self.worker.forget_idle(keep={(served.name, served.version, 'any') for served in self.nets.values()})
        _log.info('%s: version %d answers now', name, fresh.version)
        return fresh

    def _prepare(self, served: ServedNet) -> None:
        tables = tables_here(served) or measure_tables(served, self.plan.largest_batch, self.plan.warmup_seconds)
        served.use_tables(tables)
        choices = served.choices
        if self._isolate is None:
            served.warm_up([choice.stitch for choice in choices.choices], {choices.most, 1})
        else:
            served.process = self._isolate(served)
            _log.info('%s: a process loads the net and warms up, which may take a minute', served.name)
            served.process.start()
        _log.info(
            '%s: %d stitches to choose from, batches up to %d, at most %.4g images per second',
            served.name, len(choices), choices.most, choices.capacity,
        )  # fmt: skip
        if not served.evaluated:
            _log.warning(
                '%s was never evaluated: only its anchors answer unless a request names a stitch, the larger counts as '
                'the better, and min_top1 cannot be promised (eval_stitches.py measures accuracy)', served.name,
            )  # fmt: skip
        if choices.most == 1:
            _log.warning('%s has latencies for single images only, so it never batches: profile larger batches, too',
                         served.name)  # fmt: skip

    def _check_deadline(self, served: ServedNet) -> None:
        least = 1000 * served.choices.fast[0][1]
        if self.plan.deadline_ms < least:
            raise SnnetError(
                f"no stitch of '{served.name}' meets a deadline of {self.plan.deadline_ms:g} ms: the fastest takes "
                f'{least:.3g} ms; raise --deadline-ms'
            )

    def check_open(self) -> None:
        """Refuses while no requests are taken.

        Raises:
            Refusal: the service starts, drains or has to be restarted.
        """
        if self.state == 'starting':
            raise Refusal('starting', 'the service is warming up', self.plan.warmup_seconds / 4)
        if self.state != 'ready':
            raise Refusal('draining', 'the service is shutting down and takes no new requests')
        if not self.worker.healthy:
            raise Refusal('worker_lost', 'too many batches hang: the service has to be restarted')

    def _queue_of(self, served: ServedNet, demand: Demand) -> tuple[Hashable, Choices]:
        self.check_open()
        if demand.deadline_ms > self.plan.longest_ms:
            raise Refusal('invalid', f'deadline_ms is at most {self.plan.longest_ms:g}, not {demand.deadline_ms:g}')
        return served.queue_of(demand)

    def _late(self, demand: Demand, choices: Choices) -> Refusal:
        seconds = self.worker.seconds_of_work()
        return Refusal(
            'deadline',
            f'a deadline of {demand.deadline_ms:g} ms cannot be met now: the fastest stitch takes about '
            f'{1000 * choices.fast[0][1]:.3g} ms, and what waits about {1000 * seconds:.3g} ms',
            seconds,
        )

    def _watch(self) -> None:
        given_back = self.clock()
        while not self._stop.wait(WATCH_SECONDS):
            self.worker.watch()
            if self.clock() - given_back > GIVE_BACK_SECONDS and not self.worker.waiting:
                give_back()
                given_back = self.clock()
            for process in [*self._retired]:
                if not self.worker.uses(process):
                    process.close()
                    self._retired.remove(process)
