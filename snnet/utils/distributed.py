"""One process or several: the ranks of a run, started by plain Python or by torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed as dist

from ..errors import LostRanks, SnnetError, reason_of


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of a run.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
        device: device that this process computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> None:
        """Sums a tensor over all ranks, in place.

        Raises:
            LostRanks: another rank has ended or does not answer; all methods below raise it, too.
        """
        if self.world > 1:
            with self.naming_lost_ranks():
                dist.all_reduce(tensor)

    def share(self, value: Any) -> Any:
        """Returns the first rank's value on every rank. Meant for small values: they are pickled."""
        box = [value]
        if self.world > 1:
            with self.naming_lost_ranks():
                dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def copy_first(self, tensors: Iterator[Tensor]) -> None:
        """Overwrites tensors with those of the first rank."""
        if self.world > 1:
            with self.naming_lost_ranks():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), src=0)

    def gather(self, thing: Any) -> list[Any]:
        """Returns the values of all ranks, in their order, on every rank."""
        things = [thing] * self.world
        if self.world > 1:
            with self.naming_lost_ranks():
                dist.all_gather_object(things, thing)
        return things

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world > 1:
            with self.naming_lost_ranks():
                dist.barrier()

    @contextmanager
    def naming_lost_ranks(self) -> Iterator[None]:
        """Turns a failed exchange into one sentence. Why the other ranks stopped is in their own output.

        Raises:
            LostRanks: in place of the backend's error.
        """
        try:
            yield
        except RuntimeError as error:
            raise LostRanks(f'rank {self.rank} lost the other {self.world - 1} ranks: {reason_of(error)}') from error


@contextmanager
def ranks(device: str, timeout: float = 1800) -> Iterator[Ranks]:
    """Joins the process group that torchrun's environment variables describe, if any, and leaves it at the end.

    Args:
        device: 'cpu', 'cuda', or '' for a GPU if there is one.
        timeout: seconds after which a rank stops waiting for the others.

    Raises:
        SnnetError: there is no such device.
        LostRanks: the ranks do not meet.
    """
    kind = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    world, rank = int(os.environ.get('WORLD_SIZE', '1')), int(os.environ.get('RANK', '0'))
    local = int(os.environ.get('LOCAL_RANK', '0'))
    if kind == 'cuda' and local >= torch.cuda.device_count():
        raise SnnetError(f'rank {rank} needs GPU {local}, but there are {torch.cuda.device_count()}: use --device cpu')
    chosen = torch.device(kind, local) if kind == 'cuda' else _existing(kind)
    if chosen.type == 'cuda':
        torch.cuda.set_device(chosen)
    if world > 1:
        _join('nccl' if chosen.type == 'cuda' else 'gloo', timedelta(seconds=timeout))
    yield Ranks(rank, world, chosen)
    if world > 1:  # not after an error, because leaving waits for ranks that may have ended
        dist.destroy_process_group()


def _existing(name: str) -> torch.device:
    """The device of this name.

    Raises:
        SnnetError: torch does not know it, or cannot use it here.
    """
    try:
        torch.zeros(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError):  # torch built without CUDA asserts
        raise SnnetError(f"there is no device '{name}' here: use --device cpu") from None


def _join(backend: str, timeout: timedelta) -> None:
    """Joins the group with a store of this attempt alone: a restarted rank would else find stale addresses."""
    attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    try:
        store, rank, world = next(iter(dist.rendezvous('env://', timeout=timeout)))
        own = dist.PrefixStore(f'snnet/{attempt}', store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise LostRanks(f'the ranks of this run did not meet: {reason_of(error)}') from error
