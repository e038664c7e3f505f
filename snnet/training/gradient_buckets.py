"""The gradients of a step in buckets, which travel between ranks while the backward pass still computes others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, distributed as dist, nn
from torch.utils.hooks import RemovableHandle

from ..errors import SnnetError
from ..utils.distributed import Ranks

_Tensor = TypeVar('_Tensor', bound=Tensor)

_BUCKET = 32 << 20
"""Bytes that are sent together: few messages, and a small copy."""


class _Message(NamedTuple):
    """A bucket on its way: the tensors that get the average, a copy of them that is being summed, and the work."""

    tensors: list[Tensor]
    flat: Tensor
    work: dist.Work


class GradientBuckets:
    """The gradients of one step, which all ranks send in the same buckets and in the same order.

    What shares a bucket does not depend on when it is sent, so the averages are the same bit for bit whether the
    buckets are sent during the last backward pass of the step or after it.

    Args:
        parameters: what the step may move, about in the order in which the backward pass completes the gradients; equal
            on all ranks.
        unfinished: those to which the last backward pass of this rank adds a gradient.
        ranks: of the run.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], unfinished: Collection[nn.Parameter], ranks: Ranks) -> None:
        self.ranks = ranks
        self._buckets = list(_grouped(parameters))
        self._missing = [{parameter for parameter in bucket if parameter in unfinished} for bucket in self._buckets]
        self._messages: list[_Message] = []

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Within it the last backward pass of the step sends each bucket once it and all before it are complete.

        Raises:
            LostRanks: another rank is gone.
            SnnetError: a gradient has changed after it was sent.
        """
        if self.ranks.world == 1:
            yield
            return
        places = {parameter: place for place, bucket in enumerate(self._buckets) for parameter in bucket}

        def complete(parameter: nn.Parameter) -> None:
            place = places[parameter]
            if place < len(self._messages):
                raise SnnetError(
                    'a gradient has changed after it was sent to the other ranks: several ranks can only train modules '
                    'whose backward pass gives each parameter its gradient once, which checkpointing with '
                    'use_reentrant=True may not do'
                )
            self._missing[place].discard(parameter)
            self._send_complete()

        hooks: list[RemovableHandle] = [
            parameter.register_post_accumulate_grad_hook(complete)  # type: ignore[no-untyped-call]
            for parameter in places
        ]
        try:
            with self._leaving_nothing_on_its_way():
                self._send_complete()
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def average(self, others: Iterable[Tensor]) -> None:
        """Sends what is left, waits for all, and averages in place; zeros stand for a gradient that there is not.

        Args:
            others: tensors that are averaged, too; they are sent last.

        Raises:
            LostRanks: another rank is gone or silent.
        """
        with self._leaving_nothing_on_its_way():
            while len(self._messages) < len(self._buckets):
                self._send_next()
            self._messages += map(self._sent, _grouped(others))
            for message in self._messages:
                with self.ranks.naming_lost_ranks():
                    message.work.wait()
                message.flat.div_(self.ranks.world)
                parts = torch.split(message.flat, [tensor.numel() for tensor in message.tensors])
                shaped = [part.view_as(tensor) for part, tensor in zip(parts, message.tensors, strict=True)]
                torch._foreach_copy_(message.tensors, shaped)

    @contextmanager
    def _leaving_nothing_on_its_way(self) -> Iterator[None]:
        """After an error, waits for what was sent: a process that ended earlier would be aborted by gloo's threads.

        The other ranks get as far, or end and so close the connection, or are silent until the timeout closes it.
        """
        try:
            yield
        except BaseException:
            for message in self._messages:
                with suppress(RuntimeError):
                    message.work.wait()
            raise

    def _send_complete(self) -> None:
        """Sends buckets up to the first that misses a gradient, so the order is the same on all ranks."""
        while len(self._messages) < len(self._buckets) and not self._missing[len(self._messages)]:
            self._send_next()

    def _send_next(self) -> None:
        gradients = []
        for parameter in self._buckets[len(self._messages)]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self._messages.append(self._sent(gradients))

    def _sent(self, tensors: list[Tensor]) -> _Message:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self.ranks.naming_lost_ranks():
            work = dist.all_reduce(flat, async_op=True)
        assert work is not None  # this process belongs to the group
        return _Message(tensors, flat, work)


def _grouped(tensors: Iterable[_Tensor]) -> Iterator[list[_Tensor]]:
    """Groups of tensors of one type, in order, of about `_BUCKET` bytes."""
    bucket: list[_Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > _BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
