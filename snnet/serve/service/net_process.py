"""A net that computes in a process of its own, so that it does not wait for Python's lock while requests are read.

A network of a millisecond calls a hundred short operations. In a thread, each of them waits for the lock of Python that
the event loop holds. Images and logits pass through shared memory; a pipe says what to compute.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from .refusal import Refusal
from .served_net import ServedNet, load_served_net

_log = logging.getLogger(__name__)
_FLOAT = 4
START_SECONDS = 120.0
"""Longest time until a process has loaded its net."""
TRIES = 5
"""How often a process that ends while it loads its net is started, one after the other."""
WARM_SECONDS = 30.0, 10.0
"""Longest parts of this in which it warms up: with the largest batches and single images, and with sizes between."""
PAUSE = 30.0
"""Seconds after that many processes have ended, until another one is tried while serving."""


@dataclass(frozen=True)
class Loading:
    """How a process loads a net: the arguments of `load_served_net`, and what has to be set up before."""

    name: str
    source: str
    dtype: str
    compiled: bool
    version: int
    threads: int
    plugins: tuple[str, ...]


class NetProcess:
    """Runs batches in another process, and in this one while that process starts.

    Args:
        served: the same net in this process, with its tables.
        loading: how the other process loads it.
    """

    def __init__(self, served: ServedNet, loading: Loading) -> None:
        self._served, self._loading = served, loading
        self._most = served.choices.most
        self._stitches = [choice.stitch for choice in served.choices.choices]
        self._shapes = (self._most, *served.input_size), (self._most, served.net.num_classes)
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection[Any, Any] | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def start(self) -> bool:
        """Starts the process, and waits until it has loaded its net; one that ends before that is tried again.

        Returns:
            Whether no further try is needed.
        """
        for _ in range(TRIES):
            if self._closed.is_set() or self._started():
                return True
            _log.warning('the process of %s ended while it loaded the net', self._served.name)
        _log.error('%s computes in this process: another one did not start %d times', self._served.name, TRIES)
        return False

    def _started(self) -> bool:
        """Starts the process; whether no further try is needed."""
        memory = _shared_memory(_FLOAT * sum(int(np.prod(shape)) for shape in self._shapes))
        ours, theirs = Pipe()
        with memory, theirs:
            os.set_inheritable(theirs.fileno(), True)
            given = (theirs.fileno(), memory.fileno())
            code = f'from {__name__} import main; main({given[0]}, {given[1]})'
            self._process = subprocess.Popen([sys.executable, '-c', code], pass_fds=given, stdin=subprocess.DEVNULL)
            view = mmap.mmap(memory.fileno(), 0)
        loaded = self._loaded(ours)
        if loaded == [self._served.net.fingerprint]:
            with self._lock:
                if not self._closed.is_set():
                    images, self._logits = _arrays(view, self._shapes)
                    self._images, self._pipe = torch.from_numpy(images), ours
                    return True
        elif loaded:
            _log.error('%s computes in this process: its folder holds another net by now', self._served.name)
        self._end()
        return bool(loaded)

    def _loaded(self, pipe: Connection[Any, Any]) -> list[str | None]:
        """The fingerprint of the net that the process has loaded; nothing if it ended before, or took too long."""
        try:
            pipe.send((asdict(self._loading), self._shapes, self._stitches, self._served.net.fingerprint))
            return [pipe.recv()] if pipe.poll(START_SECONDS) else []
        except (EOFError, OSError):
            return []

    def __call__(self, images: Sequence[Tensor], stitch: int) -> np.ndarray:
        """Prepared images (C, H, W) to logits (N, classes), as float32.

        Raises:
            Refusal: the process was killed or died in this batch; another one is started.
        """
        pipe, count = self._pipe, len(images)
        if pipe is None or count > self._most:
            return self._served.run(images, stitch)
        torch.stack([*images], out=self._images[:count])  # gives up Python's lock once, where a loop does it per image
        try:
            pipe.send_bytes(b'%d %d' % (count, stitch))
            failure = pipe.recv_bytes()
        except (EOFError, OSError):
            self._replace()
            raise Refusal('worker_lost', 'the process that computes ended and is replaced: try again', 0.0) from None
        if failure:
            raise RuntimeError(failure.decode())
        return self._logits[:count].copy()

    def interrupt(self) -> None:
        """Ends a batch that hangs: its call raises, and another process starts."""
        with self._lock:
            if self._pipe is not None and self._process is not None:  # not one that still loads
                self._pipe = None
                self._process.kill()

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._closed.set()
            self._pipe = None
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _replace(self) -> None:
        """Starts another process; until it is there, this one computes."""
        with self._lock:
            self._pipe = None
        self._end()
        if not self._closed.is_set():
            _log.error('the process of %s ended: another one starts', self._served.name)
            threading.Thread(target=self._start_again, name='snnet process', daemon=True).start()

    def _start_again(self) -> None:
        while not self.start() and not self._closed.wait(PAUSE):
            pass


def _shared_memory(size: int) -> IO[bytes]:
    """A file that only those know who are given it."""
    known = hasattr(os, 'memfd_create')
    file: IO[bytes] = os.fdopen(os.memfd_create('snnet'), 'w+b') if known else tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    return file


def _arrays(view: mmap.mmap, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    images = np.frombuffer(view, np.float32, int(np.prod(shapes[0]))).reshape(shapes[0])
    logits = np.frombuffer(view, np.float32, int(np.prod(shapes[1])), _FLOAT * images.size).reshape(shapes[1])
    return images, logits


def main(pipe_number: int, memory_number: int) -> None:
    """What the process does: loads the net, warms up, and computes until the pipe is closed.

    Args:
        pipe_number: of the pipe's end.
        memory_number: of the shared memory.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole group: the service drains, and ends the pipe
        signal.signal(number, signal.SIG_IGN)
    pipe: Connection[Any, Any] = Connection(pipe_number)
    try:
        given, shapes, stitches, expected = pipe.recv()
        images, logits = _arrays(mmap.mmap(memory_number, 0), shapes)
        served = _load(Loading(**given))
        found = served.net.fingerprint
        if found == expected:
            warm_up(served, stitches, len(images))
        pipe.send(found)
        while True:
            count, stitch = map(int, pipe.recv_bytes().split())
            pipe.send_bytes(_compute(served, images[:count], logits[:count], stitch))
    except (EOFError, OSError):
        return  # the service has ended


def warm_up(served: ServedNet, stitches: Sequence[int], most: int) -> None:
    """Runs stitches with every batch size, the largest first, so that smaller ones fit into the memory that it took."""
    served.warm_up(stitches, (most, 1), WARM_SECONDS[0])
    served.warm_up(stitches, range(most - 1, 1, -1), WARM_SECONDS[1])


def _load(loading: Loading) -> ServedNet:
    from ...utils.plugins import import_plugins

    import_plugins(list(loading.plugins))
    torch.set_num_threads(loading.threads)
    torch.set_num_interop_threads(1)
    return load_served_net(
        loading.name, loading.source, device='cpu', dtype=loading.dtype, compiled=loading.compiled,
        version=loading.version,
    )  # fmt: skip


def _compute(served: ServedNet, images: np.ndarray, logits: np.ndarray, stitch: int) -> bytes:
    """Writes the logits of images; what went wrong, or nothing."""
    try:
        logits[:] = served.run([*torch.from_numpy(images)], stitch)
    except Exception as error:
        _log.exception('stitch %d failed on a batch of %d', stitch, len(images))
        return repr(error).encode() or b'?'
    return b''
