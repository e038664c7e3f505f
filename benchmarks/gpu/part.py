"""A part of the run: a function in a process of its own, with a time limit."""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from benchmarks.gpu.book import Book


class Part(NamedTuple):
    """What a part is called, its share of the time, and its function of the options and the report."""

    title: str
    weight: float
    module: str
    function: str = 'run'


PARTS = (
    Part('Tests on the device', 1.6, 'benchmarks.gpu.device_tests'),
    Part('Switching and serving', 1.2, 'benchmarks.gpu.serving'),
    Part('The training step of the DeiT recipe', 1.3, 'benchmarks.gpu.recipe_step'),
    Part('All stitches, and least squares', 1.0, 'benchmarks.gpu.all_stitches'),
    Part('A family trained from scratch', 2.4, 'benchmarks.gpu.cifar_family'),
)
"""In the order of their worth."""
COMPILING = 30.0
"""Seconds that what compiles is given at least; with fewer it is left out, so that a part ends by itself."""


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        device: 'cuda' or 'cpu'.
        tiny: tiny networks and few repetitions.
        out: folder for the results.
        data: folder of the CIFAR-10 sprites; '' for generated images.
    """

    device: str
    tiny: bool
    out: str
    data: str


class Report:
    """What a part finds, sent to the process that writes it down.

    Args:
        pipe: leads there.
        end: when the part is cut, on the monotonic clock.
    """

    def __init__(self, pipe: Connection, end: float) -> None:
        self.pipe, self.end = pipe, end

    @property
    def seconds_left(self) -> float:
        """Until the part is cut."""
        return self.end - time.monotonic()

    def can_compile(self, what: str, tiny: bool) -> bool:
        """Whether there is time to compile; notes otherwise that something is left out."""
        left, seconds = self.seconds_left, COMPILING / 6 if tiny else COMPILING
        if left < seconds:
            self.note(f'{what}: left out, because {left:.0f} s are left and it may take {seconds:.0f} s')
        return left >= seconds

    def facts(self, **facts: Any) -> None:
        """About the machine."""
        self.pipe.send({'facts': facts})

    def note(self, text: str) -> None:
        """A sentence."""
        self.pipe.send({'note': text})

    def row(self, table: str, **cells: Any) -> None:
        """A row of a table; the names of the cells are its columns."""
        self.pipe.send({'table': table, 'row': {name.replace('_', ' '): value for name, value in cells.items()}})

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Notes what fails inside, such as a batch that the memory does not hold, and goes on."""
        failed = False
        try:
            yield
        except Exception as error:
            failed = True
            self.note(f'{what} failed: {in_a_sentence(error)}')
        if failed:  # behind the handler, where the error no longer holds what it came from
            import torch

            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def in_a_sentence(error: BaseException) -> str:
    """Type and first line of an error."""
    return f'{type(error).__name__}: {(str(error).strip() or "no message").splitlines()[0][:300]}'


def run_part(number: int, part: Part, options: Options, book: Book, limit: float) -> None:
    """Runs a part to its end or its limit, and notes in the book how it ended."""
    book.begin(number, part.title, limit)
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['timm', 'torchvision', 'fvcore.nn', 'snnet.training.trainer', 'snnet.cli.main'])
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(part, options, writing, limit), daemon=False)
    end = time.monotonic() + limit
    process.start()
    writing.close()
    state, sentence = 'cut', f'It exceeded its limit of {limit:.0f} s; what it had found by then is here.'
    try:
        while reading.poll(max(end - time.monotonic(), 0)):
            entry = reading.recv()
            if 'ended' in entry:
                state, sentence = entry['ended']
                break
            book.add(entry)
    except EOFError:
        process.join()
        state, sentence = 'failed', f'Its process ended without a word, with exit code {process.exitcode}.'
    except (KeyboardInterrupt, SystemExit):
        sentence = 'The run was ended from outside; what it had found by then is here.'
        raise
    finally:
        _end(process.pid)
        process.kill()
        process.join()
        book.close(state, sentence)


def _end(pid: int | None) -> None:
    """Ends a process with all that it started, which would hold memory of the device."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _work(part: Part, options: Options, pipe: Connection, limit: float) -> None:
    """The process of a part."""
    os.setsid()  # so that the part and all that it starts can be ended together
    report = Report(pipe, time.monotonic() + limit)
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # deterministic products, before CUDA starts
    try:
        _describe(options, report)
        getattr(importlib.import_module(part.module), part.function)(options, report)
    except BaseException as error:  # whatever ends a part becomes a sentence
        pipe.send({'ended': ('failed', in_a_sentence(error))})
        return
    pipe.send({'ended': ('done', '')})


def _describe(options: Options, report: Report) -> None:
    import timm
    import torch

    if options.device == 'cuda' and not torch.cuda.is_available():
        raise RuntimeError('torch sees no GPU here: use --device cpu')
    report.facts(device=options.device, torch=torch.__version__, timm=timm.__version__)
    report.facts(python=sys.version.split()[0], cores=len(os.sched_getaffinity(0)))
    if options.device == 'cuda':
        card = torch.cuda.get_device_properties(0)
        report.facts(card=f'{card.name} with {card.total_memory / 2**30:.0f} GiB', CUDA=torch.version.cuda)
    else:
        torch.set_num_threads(1)
        report.facts(card=f'none ({platform.machine()}, one thread)')
