"""Why a request gets no answer."""

from __future__ import annotations

from typing import Literal

Reason = Literal[
    'deadline', 'busy', 'given_up', 'failed', 'worker_lost', 'timeout', 'draining', 'starting', 'unknown', 'invalid',
    'too_large', 'unsupported', 'forbidden', 'gone',
]  # fmt: skip
"""Kinds of refusals; a server maps each to a status of its protocol."""


class Refusal(Exception):
    """A request that gets no answer, with a sentence for the client.

    Args:
        reason: the kind of refusal.
        message: what was asked and what is possible.
        retry_after: seconds after which another try may succeed; None where it cannot be said.
        closes: whether the connection ends with it, because the rest of the request is not read.
    """

    def __init__(self, reason: Reason, message: str, retry_after: float | None = None, *, closes: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after
        self.closes = closes
