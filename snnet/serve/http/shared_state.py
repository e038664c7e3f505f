"""What the routes of the service share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...errors import SnnetError
from ..service.refusal import Refusal
from ..service.served_net import ServedNet
from ..service.service import Service
from ..service.worker import ImageAnswer
from .decode_pool import DecodePool
from .http_limits import HttpLimits
from .request_options import RequestOptions
from .telemetry import Telemetry

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
    """

    service: Service
    limits: HttpLimits
    pool: DecodePool
    telemetry: Telemetry
    reload_token: str | None = None

    async def answers(
        self, served: ServedNet, images: Sequence[Tensor], options: RequestOptions, arrived: float
    ) -> list[ImageAnswer]:
        """The answers to the images of a request.

        Raises:
            Refusal: it cannot be answered, or was not half a second after its deadline.
        """
        demand = options.demand
        futures = self.service.submit(served, images, demand, arrived)
        left = arrived + demand.deadline_ms / 1000 + GRACE - self.service.clock()
        try:
            found = await asyncio.wait_for(_all(futures), max(0.001, left))
        except asyncio.TimeoutError:
            raise Refusal(
                'timeout', f'there was no answer {GRACE:g} s after the deadline of {demand.deadline_ms:g} ms', 0.0
            ) from None
        self.telemetry.answered(served, demand, arrived, found)
        return found


async def _all(futures: Sequence[Future[ImageAnswer]]) -> list[ImageAnswer]:
    return await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))


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
