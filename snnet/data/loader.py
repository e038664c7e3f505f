"""Loader processes that may be killed: the batches continue unchanged, or the run ends with one sentence."""

from __future__ import annotations

import atexit
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..errors import SnnetError
from .batches import AugmentedPictures, Batch, Normalizer, collate
from .order import Draw

_log = logging.getLogger(__name__)
RESTARTS = 3
"""So often in one pass killed loader processes are started again."""
STUCK_SECONDS = 600.0
"""Without a batch for so long, the loader processes count as stuck."""
_POLL_SECONDS = 5.0

Order = Callable[[int], Iterator[list[Draw]]]
"""Gives the batches of a pass from a number on."""


class Loader:
    """Batches of draws, the same whatever the number of loader processes and however often one is killed.

    The processes are kept from pass to pass; only one pass is under way at a time.

    Args:
        pictures: the augmented images.
        normalizer: finishes a batch.
        workers: number of processes; 0 reads the images in this one.
        found: called with the index of each image that cannot be read, and the reason.
    """

    def __init__(
        self,
        pictures: AugmentedPictures,
        normalizer: Normalizer,
        workers: int,
        found: Callable[[int, str], object],
    ) -> None:
        self._pictures, self._normalizer, self._workers, self._found = pictures, normalizer, workers, found
        self._order = _Order()
        self._loader: DataLoader[Any] | None = None

    def batches(self, order: Order, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalized images (N, 3, H, W) and classes (N,) from batch number `first` on.

        Raises:
            SnnetError: an image cannot be read and has no replacement, or the processes are killed again and again,
                or give nothing for ten minutes.
        """
        done, killed = first, 0
        while True:
            try:
                for batch in self._pass(order(done)):
                    done += 1
                    if batch.lost:
                        raise SnnetError(self._lost(batch))
                    for index, reason in batch.bad:
                        self._found(index, reason)
                    yield self._normalizer(batch)
                return
            except _Killed:
                killed += 1
                if killed > RESTARTS:
                    raise SnnetError(_MEMORY.format('were killed again and again', self._workers)) from None
                _log.warning('a process that loads images was killed; continuing at batch %d with new ones', done)

    def _pass(self, batches: Iterator[list[Draw]]) -> Iterator[Batch]:
        # processes at work on a pass that was broken off, or with a dead one among them, are not used again
        loader, self._loader = self._make_loader() if self._loader is None else self._loader, None
        self._order.batches = batches
        iterator: Any = None
        try:
            iterator = _start(loader)
            while (batch := self._next(iterator)) is not None:
                yield batch
            self._loader = loader
        except (RuntimeError, OSError, EOFError) as error:
            if self._workers and _processes_failed(error):
                raise _Killed from None
            raise
        except MemoryError:
            raise SnnetError(_MEMORY.format('ran out of memory', self._workers)) from None
        finally:
            if self._loader is None and hasattr(iterator, '_shutdown_workers'):
                iterator._shutdown_workers()  # they would live on with the iterator, which an error's traceback keeps

    def _next(self, iterator: Iterator[Batch]) -> Batch | None:
        """The next batch; says so where it takes long, and gives up where the processes are stuck."""
        begin = time.monotonic()
        while True:
            try:
                return next(iterator, None)
            except RuntimeError as error:
                if _TIMED_OUT not in str(error):
                    raise
                waited = time.monotonic() - begin
                if waited > STUCK_SECONDS:
                    _kill(_processes(iterator))
                    raise SnnetError(
                        f'the processes that load images gave nothing for {waited:.0f} s: is the disk there?'
                    ) from None
                _log.info('waiting for images, %.0f s so far', waited)

    def _make_loader(self) -> DataLoader[Any]:
        with_processes: dict[str, Any] = {
            'timeout': _POLL_SECONDS,
            'persistent_workers': True,
            'worker_init_fn': _leave_signals_to_the_main_process,
        }
        return DataLoader(
            self._pictures,
            batch_sampler=self._order,
            collate_fn=collate,
            num_workers=self._workers,
            pin_memory=self._normalizer.device.type == 'cuda',
            generator=torch.Generator(),  # torch's own is not to be moved
            **(with_processes if self._workers else {}),
        )

    def _lost(self, batch: Batch) -> str:
        index, reason = batch.bad[0]
        others = ', nor can the images tried in its place' if self._pictures.replace else ''
        return f'{self._pictures.pictures.path(index)!r} cannot be read ({reason}){others}: repair or remove it'


class _Order(Sampler[list[Draw]]):
    """The batches of the pass under way."""

    def __init__(self) -> None:
        self.batches: Iterator[list[Draw]] = iter(())

    def __iter__(self) -> Iterator[list[Draw]]:
        return self.batches


class _Killed(Exception):
    """A loader process is gone."""


_TIMED_OUT = 'DataLoader timed out'
_MEMORY = (
    'processes that load images {}, as happens when memory or shared memory (/dev/shm) runs out: lower --workers ({})'
)


def _start(loader: DataLoader[Any]) -> Iterator[Batch]:
    """Begins a pass without torch's SIGCHLD handler, which could raise at any point in this process.

    A dead process is noticed while a batch is waited for.
    """
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    atexit.register(_kill, _processes(iterator))  # they ignore signals: Python would wait for them for ever
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return iterator


def _processes(iterator: Iterator[Batch]) -> list[BaseProcess]:
    return list(getattr(iterator, '_workers', []))


def _kill(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A signal to the whole group must not kill the loader processes while the main process saves its state."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _processes_failed(error: Exception) -> bool:
    """Whether an error means that a process is gone, rather than that its code failed."""
    if isinstance(error, RuntimeError):
        return 'DataLoader worker (pid' in str(error) or _TIMED_OUT in str(error)
    return 'in DataLoader worker process' not in str(error)  # else its end of a pipe or socket is gone
