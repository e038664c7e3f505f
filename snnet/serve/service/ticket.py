"""An image that waits for its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from .delivery import Delivery, settle
from .refusal import Reason, Refusal

Run = Callable[[Sequence[Tensor], int], np.ndarray]
"""Images (C, H, W) and a stitch to logits (N, classes)."""


class Apart(Protocol):
    """What computes outside of the worker's thread (`NetProcess`). Calling it is a `Run`."""

    def __call__(self, images: Sequence[Tensor], stitch: int) -> np.ndarray:
        """Computes a batch."""

    def start(self) -> object:
        """Makes it ready; what it returns is not looked at."""

    def interrupt(self) -> None:
        """Ends a batch that hangs."""

    def close(self) -> None:
        """Ends it."""


class ImageAnswer(NamedTuple):
    """The answer to one image.

    Attributes:
        logits: (classes,).
        stitch: id of the stitch that answered.
        batch: number of images in its batch.
        waited: seconds between admission and the start of the batch.
        computed: seconds that the batch took.
        moment: when it was finished, on the monotonic clock.
    """

    logits: np.ndarray
    stitch: int
    batch: int
    waited: float
    computed: float
    moment: float


@dataclass(eq=False)
class Ticket:
    """An image that waits for its answer.

    Attributes:
        image: (C, H, W), prepared for the net.
        run: what computes the answer of a batch.
        admitted: when it was admitted, on the monotonic clock.
        delivery: what settles its future.
        future: receives an `ImageAnswer`, or a `Refusal`.
    """

    image: Tensor
    run: Run
    admitted: float
    delivery: Delivery
    future: Any

    def interrupt(self) -> None:
        """Ends a batch that hangs, where that is possible."""
        interrupt = getattr(self.run, 'interrupt', None)  # an `Apart` has it
        if interrupt is not None:
            interrupt()


def fail(tickets: Sequence[Ticket], reason: Reason, message: str, retry_after: float | None = None) -> None:
    """Refuses images that were admitted."""
    settle([(ticket.delivery, (ticket.future, Refusal(reason, message, retry_after))) for ticket in tickets])
