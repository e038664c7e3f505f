"""What the routes of the service share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import Tensor

from ...errors import SnnetError
from ..service.delivery import LoopDelivery
from ..service.refusal import Refusal
from ..service.served_net import ServedNet
from ..service.service import Service
from ..service.ticket import ImageAnswer
from .decode_pool import DecodePool
from .http_limits import HttpLimits
from .reply_reserve import ReplyReserve
from .request_options import RequestOptions
from .telemetry import Telemetry

if TYPE_CHECKING:
    from starlette.requests import Request

GRACE = 0.5
"""Seconds after its deadline at which a request that still has no answer is given up."""


@dataclass
class Context:
    """What the routes share.

    Attributes:
        service: what computes.
        limits: what clients may send.
        pool: where requests are parsed and decoded.
        telemetry: what happened.
        reload_token: what a client has to know to reload a net; None where no client may.
        reserve: what is kept of deadlines.
    """

    service: Service
    limits: HttpLimits
    pool: DecodePool
    telemetry: Telemetry
    reload_token: str | None = None
    reserve: ReplyReserve = field(default_factory=ReplyReserve)
    _deliveries: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopDelivery] = field(default_factory=WeakKeyDictionary)

    def arrival_of(self, request: Request) -> float:
        """When the first byte of a request was there, on the clock; now, where the server does not say."""
        now = self.service.clock()
        arrived: float = request.scope['state'].get('arrived', now)
        return min(now, arrived)

    async def answers(
        self, served: ServedNet, images: Sequence[Tensor], options: RequestOptions, arrived: float
    ) -> list[ImageAnswer]:
        """The answers to the images of a request.

        Raises:
            Refusal: it cannot be answered, or was not half a second after its deadline.
        """
        demand, loop = options.demand, asyncio.get_running_loop()
        delivery = self._deliveries.get(loop)
        if delivery is None:
            delivery = self._deliveries[loop] = LoopDelivery(loop)
        reserve = self.reserve.within(demand.deadline_ms / 1000)
        futures = self.service.submit(served, images, demand, arrived, delivery, reserve)
        left = arrived + demand.deadline_ms / 1000 + GRACE - self.service.clock()
        timer = loop.call_later(max(0.001, left), _give_up, futures, demand.deadline_ms)
        try:
            found = await _all(futures)
        finally:
            timer.cancel()
            futures.clear()  # an exception in one keeps this frame, which would keep the future, and the body with it
        now = self.service.clock()
        self.reserve.learn(now - max(answer.moment for answer in found))
        self.telemetry.answered(served, demand, now - arrived, found)
        return found


async def _all(futures: Sequence[asyncio.Future[ImageAnswer]]) -> list[ImageAnswer]:
    return await asyncio.gather(*futures)


def _give_up(futures: Sequence[asyncio.Future[Any]], deadline_ms: float) -> None:
    message = f'there was no answer {GRACE:g} s after the deadline of {deadline_ms:g} ms'
    for future in futures:
        if not future.done():
            future.set_exception(Refusal('timeout', message, 0.0))


def read_secret(file: str, what: str) -> str | None:
    """The secret in a file, without the line break at its end; None where no file is named.

    Raises:
        SnnetError: the file cannot be read, or holds fewer than 8 characters.
    """
    if not file:
        return None
    try:
        secret = Path(file).read_text(encoding='utf-8').strip()
    except (OSError, UnicodeDecodeError):
        raise SnnetError(f"the {what} in '{file}' cannot be read") from None
    if len(secret) < 8 or not secret.isascii():
        raise SnnetError(f"the {what} in '{file}' needs at least 8 ASCII characters")
    return secret
