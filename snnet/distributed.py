"""One process or many, started by torchrun or by plain python."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        device: what it computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> None:
        """Adds a tensor up over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)

    def gather(self, thing: Any) -> list[Any]:
        """What every process gives, in the order of ranks, on all of them."""
        things = [thing] * self.world
        if self.world > 1:
            dist.all_gather_object(things, thing)
        return things

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Joins the process group that torchrun announces, if it did, and leaves it at the end.

    Args:
        device: 'cpu', 'cuda' or '' for a GPU where there is one.
    """
    kind = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    world, rank = int(os.environ.get('WORLD_SIZE', '1')), int(os.environ.get('RANK', '0'))
    chosen = torch.device(kind, int(os.environ.get('LOCAL_RANK', '0'))) if kind == 'cuda' else torch.device(kind)
    if chosen.type == 'cuda':
        torch.cuda.set_device(chosen)
    if world > 1:
        dist.init_process_group('nccl' if chosen.type == 'cuda' else 'gloo')
    try:
        yield Ranks(rank, world, chosen)
    finally:
        if world > 1:
            dist.destroy_process_group()
