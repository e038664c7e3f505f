"""`snnet simulate FOLDER`: a saved net as a service under load, beside services that cannot adapt."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..budget.frontier import Record
from ..budget.latency_table import LatencyTable
from ..config.settings import SimulateSettings
from ..errors import MissingExtra, SnnetError
from ..net.pretrained import read_config
from ..saving.config_json import records_of
from ..saving.remote import PROFILES, WEIGHTS, locate
from ..utils.files import write_text
from ..utils.log import Progress
from .arrivals import SHAPES, arrivals, recorded
from .plot import draw_loads
from .simulate import Outcome, World, best_fixed, simulate
from .stitch_choices import Choices

_log = logging.getLogger(__name__)

STITCHES, ANCHORS, LARGEST, SMALLEST, FIXED = 'stitches', 'anchors only', 'largest', 'smallest', 'best fixed'
_REQUESTS = 20_000
"""As many at capacity are enough to tell policies apart, in seconds of computing."""
POLICIES = (STITCHES, ANCHORS, LARGEST, SMALLEST, FIXED)


@dataclass(frozen=True)
class Row:
    """What one policy did under one load.

    Attributes:
        load: requests a second, as a share of what the cheapest stitch can answer.
        rate: requests a second.
        policy: one of `POLICIES`.
        stitch: of a policy that runs a single one.
        outcome: what became of the requests.
    """

    load: float
    rate: float
    policy: str
    stitch: int | None
    outcome: Outcome


def compare(
    stitches: Choices,
    anchors: Choices | None,
    moments: np.ndarray,
    deadline: float,
    world: World,
    progress: Callable[[int], object] | None = None,
) -> list[tuple[str, int | None, Outcome]]:
    """What each policy makes of the same arrivals: its name, the stitch where it runs a single one, the outcome.

    All have the controller's batches, order by deadline and admission; they differ in what they may choose from.
    """
    last = stitches.only(len(stitches) - 1)
    fastest = min(range(len(stitches)), key=lambda index: (stitches.choices[index].seconds[1], index))
    rows: list[tuple[str, int | None, Outcome]] = [
        (STITCHES, None, simulate(stitches, moments, deadline, world, progress))
    ]
    if anchors is not None:
        rows.append((ANCHORS, None, simulate(anchors, moments, deadline, world, progress)))
    rows.append((LARGEST, last.choices[0].stitch, simulate(last, moments, deadline, world, progress)))
    smallest = stitches.only(fastest)
    rows.append((SMALLEST, smallest.choices[0].stitch, simulate(smallest, moments, deadline, world, progress)))
    choice, outcome = best_fixed(stitches, moments, deadline, world, progress)
    return [*rows, (FIXED, choice.stitch, outcome)]


def table(rows: Sequence[Row]) -> str:
    """The outcomes in plain text."""
    lines = [
        f'{"load":>5} {"req/s":>8}  {"policy":<14}{"in time %":>10}{"top-1":>8}{"effective":>10}'
        f'{"p50 ms":>9}{"p99 ms":>9}{"refused":>9}{"late":>7}{"busy %":>8}'
    ]
    for row in rows:
        o = row.outcome
        name = row.policy if row.stitch is None else f'{row.policy} {row.stitch}'
        lines.append(
            f'{row.load:>5.2f} {row.rate:>8.4g}  {name:<14}{o.attainment:>10.3f}{o.accuracy:>8.2f}{o.effective:>10.2f}'
            f'{o.p50:>9.4g}{o.p99:>9.4g}{o.refused:>9}{o.late + o.dropped:>7}{o.utilization:>8.1f}'
        )
    return '\n'.join(lines)


def run(settings: SimulateSettings) -> list[Row]:
    """Simulates, prints the table, and writes simulation.json and, where matplotlib is installed, the picture.

    Raises:
        SnnetError: the folder holds no net, no accuracies or no tables; settings out of their range.
    """
    folder = locate(settings.folder)
    records, tables = _known(folder, settings.setup)
    stitches = Choices.of(records, tables)
    anchored = [record for record in records if record.anchor and record.top1 is not None]
    anchors = Choices.of(anchored, tables) if anchored else None
    deadline = _deadline(settings, stitches)
    world = World(settings.factor, settings.spread, settings.seed)
    capacity = stitches.rate(0, deadline / 2)
    print(f'{len(stitches)} stitches to choose from, batches up to {stitches.most}, by {tables[0].setup}')
    print(f'deadline {1000 * deadline:.4g} ms; the cheapest stitch answers at most {capacity:.4g} requests a second')
    rows: list[Row] = []
    traces = _traces(settings, capacity)
    runs = 4 + (anchors is not None) + (len(stitches) - 1).bit_length()  # the last to find the best fixed network
    progress = Progress(runs * sum(map(len, traces)), 'simulated requests')
    for moments in traces:
        rate = len(moments) / max(float(moments[-1]), 1e-9) if settings.arrivals not in SHAPES else 0.0
        rate = rate or len(moments) / _seconds(settings, capacity)
        fresh = [
            Row(rate / capacity, rate, *found)
            for found in compare(stitches, anchors, moments, deadline, world, progress.update)
        ]
        lines = table(fresh).splitlines()
        print('\n'.join(lines[bool(rows) :]), flush=True)
        rows += fresh
    progress.close()
    _write(Path(settings.output or folder / 'simulation'), rows, settings, deadline)
    return rows


def _known(folder: Path, wanted: str) -> tuple[list[Record], list[LatencyTable]]:
    """Records of a saved net, and its tables of one setup."""
    config = read_config(folder)
    by_setup: dict[str, list[LatencyTable]] = {}
    for path in sorted((folder / PROFILES).glob('*.json')):
        table = LatencyTable.read(path)
        if table.weights != config['sha256'].get(WEIGHTS):
            _log.warning('%s is left out: it was measured with other weights', path)
        elif wanted.lower() in str(table.setup).lower():
            by_setup.setdefault(str(table.setup), []).append(table)
    if not by_setup:
        which = f' of a setup like {wanted!r}' if wanted else ''
        raise SnnetError(f'{folder} holds no table of latencies{which}: snnet profile FOLDER makes one')
    if len(by_setup) > 1:
        raise SnnetError(f'{folder} holds tables of several setups, choose with --setup: {"; ".join(by_setup)}')
    records = records_of(config)
    if all(record.top1 is None for record in records):
        raise SnnetError(f'no stitch of {folder} has been evaluated: eval_stitches.py measures accuracy')
    return records, next(iter(by_setup.values()))


def _deadline(settings: SimulateSettings, stitches: Choices) -> float:
    """Seconds from arrival to deadline; by default three times what the slowest stitch takes for one image."""
    slowest = max(choice.seconds[1] for choice in stitches.choices)
    deadline = 3 * slowest if settings.deadline_ms is None else settings.deadline_ms / 1000
    least = stitches.fast[0][1]
    if not deadline >= least:
        raise SnnetError(
            f'no stitch meets a deadline of {1000 * deadline:.4g} ms: the fastest takes {1000 * least:.4g}'
        )
    return deadline


def _traces(settings: SimulateSettings, capacity: float) -> list[np.ndarray]:
    """Arrivals of each load, or those of a file."""
    if settings.arrivals not in SHAPES:
        path = Path(settings.arrivals)
        if not path.is_file():
            raise SnnetError(f"arrivals are {', '.join(SHAPES)}, or a file of moments, not '{settings.arrivals}'")
        return [recorded(path)]
    try:
        loads = [float(load) for load in settings.loads]
    except ValueError:
        raise SnnetError(f'loads are numbers such as 0.5, not {" ".join(settings.loads)}') from None
    traces, seconds = [], _seconds(settings, capacity)
    for index, load in enumerate(loads):
        seed = 1000 * settings.seed + index
        moments = arrivals(settings.arrivals, load * capacity, seconds, seed, period=settings.period)
        if not len(moments):
            raise SnnetError(f'nothing arrives in {seconds:g} s at load {load:g}: simulate longer')
        traces.append(moments)
    return traces


def _seconds(settings: SimulateSettings, capacity: float) -> float:
    """Length of each simulation."""
    return min(60.0, _REQUESTS / capacity) if settings.seconds is None else settings.seconds


def _write(output: Path, rows: Sequence[Row], settings: SimulateSettings, deadline: float) -> None:
    output.mkdir(parents=True, exist_ok=True)
    about: Mapping[str, Any] = {
        'arrivals': settings.arrivals, 'deadline_ms': 1000 * deadline, 'seconds': settings.seconds,
        'period': settings.period, 'seed': settings.seed, 'factor': settings.factor, 'spread': settings.spread,
    }  # fmt: skip
    values = [
        {'load': r.load, 'rate': r.rate, 'policy': r.policy, 'stitch': r.stitch, **r.outcome.to_json()} for r in rows
    ]
    path = output / 'simulation.json'
    write_text(path, json.dumps({**about, 'rows': values}, indent=1).replace('NaN', 'null'))
    print('wrote', path)
    try:
        curves = {name: [r for r in rows if r.policy == name] for name in POLICIES}
        points = {name: [(r.load, r.outcome) for r in found] for name, found in curves.items() if found}
        print('wrote', *draw_loads(points, output / 'load', f'{settings.arrivals}, deadline {1000 * deadline:.4g} ms'))
    except MissingExtra as error:
        print(f'no picture: {error}')
