"""Requests, and the queue of those that were admitted and wait. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

from .backlog import Backlog
from .planned_batches import Plan, marks_of_kept
from .stitch_choices import Choices


@dataclass(frozen=True, slots=True)
class Request:
    """A request to be answered.

    Attributes:
        id: the caller's name for the request.
        deadline: time by which it must be answered, in seconds.
        least: lowest acceptable accuracy in percent; 0 accepts whatever the load allows.
    """

    id: Hashable
    deadline: float
    least: float = 0.0


class WaitingQueue(NamedTuple):
    """Admitted requests, earliest deadline first, column by column.

    Attributes:
        requests: (N,), the requests themselves.
        deadlines: (N,), the deadline of each.
        floors: (N,), index of the first choice that is accurate enough for each.
        sizes: (N,), size of the batch that must still be possible when each starts one
            (`policy.admission_batch_size`).
        plan: the batches by which a long queue is judged.
    """

    requests: tuple[Request, ...] = ()
    deadlines: tuple[float, ...] = ()
    floors: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    plan: Plan = Plan.empty()

    @classmethod
    def of(cls, choices: Choices, requests: Iterable[Request]) -> WaitingQueue:
        """Returns a queue of requests whose accuracy is possible, with batches of any size."""
        found = tuple(sorted(requests, key=lambda request: request.deadline))
        floors = tuple(choices.floor(request.least) or 0 for request in found)
        deadlines = tuple(request.deadline for request in found)
        plan = Plan.least_time(choices, deadlines, floors) if found else Plan.empty()
        return cls(found, deadlines, floors, (1,) * len(found), plan)

    def insert(self, choices: Choices, place: int, request: Request, floor: int, size: int) -> WaitingQueue:
        """Returns the queue with one more request, in front of the one at `place`."""
        deadlines = (*self.deadlines[:place], request.deadline, *self.deadlines[place:])
        floors = (*self.floors[:place], floor, *self.floors[place:])
        return WaitingQueue(
            requests=(*self.requests[:place], request, *self.requests[place:]),
            deadlines=deadlines,
            floors=floors,
            sizes=(*self.sizes[:place], size, *self.sizes[place:]),
            plan=self.plan.joined(choices, deadlines, floors, place, size),
        )

    def after(self, count: int) -> WaitingQueue:
        """Returns the queue without the first `count` requests."""
        columns = (self.requests[count:], self.deadlines[count:], self.floors[count:], self.sizes[count:])
        return WaitingQueue(*columns, self.plan.split(count, self.deadlines[count : count + 1])[1])

    def without(self, lost: Collection[int], rest: Backlog) -> WaitingQueue:
        """Returns the queue without the requests at some places.

        Args:
            lost: the places.
            rest: the other requests (`Backlog.without`).
        """
        kept = marks_of_kept(len(self.requests), lost)
        requests, sizes = tuple(compress(self.requests, kept)), tuple(compress(self.sizes, kept))
        return WaitingQueue(requests, rest.deadlines, rest.floors, sizes, rest.plan)

    def seen_from(self, choices: Choices, begin: float, scale: float) -> Backlog:
        """Returns the queue for a worker that begins at a time and takes `scale` seconds per table second."""
        return Backlog(choices, self.deadlines, self.floors, self.plan, begin, scale)
