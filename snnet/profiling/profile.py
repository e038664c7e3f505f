"""Measures latency and memory of every stitch on this machine, for one type and batch size."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch

from ..budget.frontier import frontier
from ..budget.latency_table import Latency, LatencyTable
from ..budget.record import COSTS
from ..errors import SnnetError, reason_of
from ..net.compile_blocks import warm_up
from ..net.hardware import setup_of
from ..net.stitchable_net import StitchableNet
from ..saving.file_names import PROFILES
from ..utils.eval_mode import eval_mode
from ..utils.files import write_text
from ..utils.progress import Progress
from ..utils.seeds import generator
from ..utils.whole_number import whole_number
from .memory import own_bytes
from .predict_latency import Additive
from .stopwatch import CALL_SECONDS, CALLS, LEAST_VISITS, Call, StopWatch

_log = logging.getLogger(__name__)
PROBES = 12
"""Stitches that are measured in addition to the requested ones, to predict the others from."""


def profile(
    net: StitchableNet,
    *,
    batches: Sequence[int] = (1,),
    stitches: str | Iterable[int] = 'auto',
    predict: bool = True,
    minutes: float = 5.0,
    folder: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> list[LatencyTable]:
    """Measures latency and memory of the stitches on the net's current device, and adds the tables to the net.

    A latency is the median wall-clock time of `net(images, stitch=id)` in eval mode under `torch.inference_mode()`, and
    its 10 % and 90 % quantiles. A memory is the size of the parameters and buffers that the stitch uses, plus the peak
    of what a call allocates (see `peak_memory`); it is exact for every stitch. Precision and compilation are
    those of the caller: call this under `torch.autocast`, or with compiled blocks, to measure them.

    Stitches that are not measured are predicted as a sum over their parts (see `Additive`). The anchors are always
    measured, and so are the stitches on the frontiers over FLOPs, latency and memory if the net was evaluated.

    Args:
        net: the net, on its device.
        batches: batch sizes; each gets a table.
        stitches: the stitches to measure: 'all', 'frontier', ids, or 'auto', which means all if the time allows it, and
            the frontier otherwise.
        predict: whether to predict the other stitches; otherwise the tables leave them out.
        minutes: time limit for all tables together. When it is up, stitches that were not measured yet are measured
            once, and a warning says how many latencies are less precise than usual.
        folder: folder of the saved net. It receives the tables, and intermediate results from which an interrupted
            profile resumes. A finished table is not measured again.
        overwrite: measure again what already has a table.
        seed: seed of the images and of the order of the calls.
        quiet: show no progress.

    Returns:
        The tables, in the order of `batches`.

    Raises:
        SnnetError: `batches` or `stitches` is not as described, or a stitch does not run.
        UnknownStitch: an id does not exist.
    """
    wanted = _wanted(net, stitches)
    batches = _batch_sizes(batches)
    if not minutes >= 0:  # so is NaN
        raise SnnetError(f'minutes is zero or a positive number, not {minutes}')
    profiles = _profiles_of(folder)
    net.known.verified(net, thorough=True)  # tables name the weights they were measured with
    tables = []
    with torch.inference_mode(), eval_mode(net):
        end = time.monotonic() + 60 * minutes
        for number, batch in enumerate(batches):
            seconds = max(0.0, end - time.monotonic()) / (len(batches) - number)
            run = _Profile(net, batch, profiles, overwrite, seed, seconds, quiet)
            tables.append(run.table(wanted, predict))
            net.add_table(tables[-1])
    return tables


def _wanted(net: StitchableNet, stitches: str | Iterable[int]) -> str | list[int]:
    """The stitches to measure, checked."""
    if not isinstance(stitches, str):
        return [net.checked(stitch) for stitch in stitches]
    if stitches not in ('auto', 'all', 'frontier'):
        raise SnnetError(f"stitches are 'auto', 'all', 'frontier' or ids, not '{stitches}'")
    return stitches


def _batch_sizes(batches: object) -> list[int]:
    """The batch sizes as integers, checked."""
    if isinstance(batches, str) or not isinstance(batches, Sequence) or not batches:
        raise SnnetError(f'batches are a list of batch sizes of at least 1, not {batches!r}')
    return [whole_number('a batch size', batch, least=1) for batch in batches]


def _profiles_of(folder: str | Path | None) -> Path | None:
    """Where the tables of a saved net lie, made where it is missing."""
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise SnnetError(f"tables go into the folder of a saved net, but there is no folder '{folder}'")
    profiles = Path(folder) / PROFILES
    profiles.mkdir(exist_ok=True)
    return profiles


class _Profile:
    """Makes one table."""

    def __init__(
        self,
        net: StitchableNet,
        batch: int,
        folder: Path | None,
        overwrite: bool,
        seed: int,
        seconds: float,
        quiet: bool,
    ) -> None:
        self.net, self.seconds, self.quiet = net, seconds, quiet
        self.empty = LatencyTable(setup_of(net), batch, net.fingerprint, {})
        weight = next(net.parameters())
        images = torch.randn(batch, *net.input_size, generator=generator(seed, 'images to profile'))
        self.images = images.to(weight.device, weight.dtype)
        self.file = None if folder is None else folder / self.empty.file_name
        # until a table is complete, it has another name
        partial_file = None if self.file is None else self.file.with_suffix('.partial')
        if overwrite and self.file is not None and partial_file is not None:
            self.file.unlink(missing_ok=True)
            partial_file.unlink(missing_ok=True)
        self.earlier = self._earlier()
        facts = {'setup': str(self.empty.setup), 'batch': batch, 'weights': self.empty.weights, 'seed': seed}
        self.watch = StopWatch(weight.device, partial_file, facts, seed, seconds)

    def table(self, wanted: str | list[int], predict: bool) -> LatencyTable:
        """Returns the table: earlier measurements, new measurements and predictions."""
        ids = set(range(len(self.net.stitches)))
        exact = not predict and not isinstance(wanted, str)  # only the requested stitches
        whole = {'all': ids}.get(wanted, set()) if isinstance(wanted, str) else set(wanted)
        whole = whole if exact else whole | self._special(self.earlier)
        listed = ids if predict or wanted == 'auto' else whole
        if listed <= self.earlier.rows.keys() and whole <= self.earlier.measured:
            _log.info('the table for batch %d exists already: %s', self.empty.batch, self.file)
            return self.earlier
        try:
            self._warm_up(sorted(listed))
            if wanted == 'auto' and self._estimate(listed) <= self.seconds:
                whole = listed
            table = self._fill(whole, sorted(listed) if predict else [])
        finally:
            self.watch.save()
        if self.file is not None:
            write_text(self.file, table.to_json())
            self.watch.forget()
        return table

    def _earlier(self) -> LatencyTable:
        """Returns the table in the file, or an empty one if that was measured with other weights."""
        if self.file is None or not self.file.exists():
            return self.empty
        try:
            table = LatencyTable.read(self.file)
            table.check_rows(len(self.net.stitches))
        except SnnetError as error:
            _log.warning('%s: %s; it is measured again', self.file, error)
            return self.empty
        if (table.setup, table.batch, table.weights) == (self.empty.setup, self.empty.batch, self.empty.weights):
            return table
        _log.warning('%s was measured with other weights; it is measured again', self.file)
        return self.empty

    def _special(self, table: LatencyTable) -> set[int]:
        """Returns the anchors and the stitches on the frontier over any cost."""
        records = table.applied(self.net.records)
        anchors = {record.stitch for record in records if record.anchor}
        return anchors.union(*({record.stitch for record in frontier(records, cost)} for cost in COSTS))

    def _warm_up(self, stitches: Sequence[int]) -> None:
        """Runs each stitch for the first time and measures its memory."""
        if self.empty.setup.backend == 'compile':
            warm_up(self.net, self.images, self.quiet)
        progress = Progress(len(stitches), 'first calls', quiet=self.quiet)
        for stitch in stitches:
            try:
                self.watch.first(_name(stitch), self._call(stitch))
            except RuntimeError as error:
                what = f'{len(self.images)} images on {self.empty.setup}'
                raise SnnetError(f'stitch {stitch} does not run with {what}: {reason_of(error)}') from error
            progress.update(1)
        progress.close()

    def _estimate(self, stitches: Iterable[int]) -> float:
        """Estimates the seconds that measuring takes at least, from the first calls."""
        firsts = (self.watch.firsts[_name(stitch)] / 1e3 for stitch in stitches if stitch not in self.earlier.measured)
        return sum(LEAST_VISITS * (2 * s + min((CALLS - 1) * s, CALL_SECONDS)) for s in firsts)

    def _fill(self, whole: set[int], listed: list[int]) -> LatencyTable:
        """Measures `whole`, predicts the rest of `listed`, and measures predicted stitches that reach a frontier."""
        rest = set(listed) - whole - self.earlier.measured
        model = Additive(self.net, listed) if len(rest) > PROBES else None
        times: list[float] = []
        if model is not None:
            parts = {f'part {i}': call for i, call in enumerate(model.calls(self.net, self.images))}
            self._time(parts, 'visits of parts')
            times = [self.watch.quantiles(name)[1] for name in parts]
            rest = set(model.probes(times, sorted(whole | self.earlier.measured), PROBES))
        whole = whole | rest
        _log.info('batch %d: measuring %d of %d stitches', len(self.images), len(whole), len(self.net.stitches))
        predictions: dict[int, float] = {}
        while True:
            self._time({_name(i): self._call(i) for i in sorted(whole - self.earlier.measured)}, 'visits of stitches')
            table = self._table(whole, predictions)
            if model is None:
                return table
            known = {i: table.rows[i].ms for i in table.measured}
            predictions = model.predict(times, known)
            table = self._table(whole, predictions)
            more = self._special(table) - table.measured
            if not more:
                return replace(table, error=model.error(times, known))
            whole = whole | more

    def _time(self, calls: Mapping[str, Call], unit: str) -> None:
        progress = Progress(self.watch.visits_left(list(calls)), unit, quiet=self.quiet)
        self.watch.time(calls, progress)
        progress.close()
        rough = sum(not self.watch.settled(name) for name in calls)
        if rough:
            limit = f'{self.seconds / 60:.3g} minutes'
            _log.warning('%s are up: %d of %d latencies are less precise than usual', limit, rough, len(calls))

    def _call(self, stitch: int) -> Call:
        return partial(self.net, self.images, stitch=stitch)

    def _table(self, whole: Iterable[int], predictions: Mapping[int, float]) -> LatencyTable:
        """Builds a table of the earlier and new measurements and of the predictions."""
        rows = {i: self.earlier.rows[i] for i in self.earlier.measured}
        own = own_bytes(self.net)
        for stitch in whole - rows.keys():
            low, middle, high = self.watch.quantiles(_name(stitch))
            rows[stitch] = Latency(middle, low, high, own(stitch) + self.watch.memory[_name(stitch)])
        low, high = (fmean(getattr(row, end) / row.ms for row in rows.values()) for end in ('low', 'high'))
        for stitch in predictions.keys() - rows.keys():
            ms = predictions[stitch]
            memory = own(stitch) + self.watch.memory[_name(stitch)]
            rows[stitch] = Latency(ms, low * ms, high * ms, memory, predicted=True)
        return replace(self.empty, rows=dict(sorted(rows.items())))


def _name(stitch: int) -> str:
    return f'stitch {stitch}'
