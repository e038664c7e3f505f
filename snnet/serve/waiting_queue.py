"""Requests, and the queue of those that were admitted and wait. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import NamedTuple

from .backlog import Backlog
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
    """

    requests: tuple[Request, ...] = ()
    deadlines: tuple[float, ...] = ()
    floors: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    def insert(self, place: int, request: Request, floor: int, size: int) -> WaitingQueue:
        """Returns the queue with one more request, in front of the one at `place`."""
        return WaitingQueue(
            requests=(*self.requests[:place], request, *self.requests[place:]),
            deadlines=(*self.deadlines[:place], request.deadline, *self.deadlines[place:]),
            floors=(*self.floors[:place], floor, *self.floors[place:]),
            sizes=(*self.sizes[:place], size, *self.sizes[place:]),
        )

    def between(self, start: int, stop: int | None = None) -> WaitingQueue:
        """Returns the requests from `start` to before `stop`."""
        part = slice(start, stop)
        return WaitingQueue(self.requests[part], self.deadlines[part], self.floors[part], self.sizes[part])

    def without(self, lost: Collection[int]) -> WaitingQueue:
        """Returns the queue without the requests at some places."""
        kept = [i for i in range(len(self.requests)) if i not in lost]
        return WaitingQueue(
            requests=tuple(self.requests[i] for i in kept),
            deadlines=tuple(self.deadlines[i] for i in kept),
            floors=tuple(self.floors[i] for i in kept),
            sizes=tuple(self.sizes[i] for i in kept),
        )

    def seen_from(self, choices: Choices, begin: float, scale: float) -> Backlog:
        """Returns the queue for a worker that begins at a time and takes `scale` seconds per table second."""
        return Backlog(choices, self.deadlines, self.floors, begin, scale)
