"""`snnet simulate FOLDER`: a saved net as a service under load, beside services that cannot adapt."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.sections import option
from ..errors import MissingExtra, SnnetError

if TYPE_CHECKING:
    import numpy as np

    from ..budget.latency_table import LatencyTable
    from ..budget.record import Record
    from ..serve.compare_policies import PolicyOutcome
    from ..serve.stitch_choices import Choices

_log = logging.getLogger(__name__)
REQUESTS = 20_000
"""Requests per simulation at full load: enough to tell policies apart, in seconds of computing."""


@dataclass
class SimulateSettings:
    """Settings of `snnet simulate`."""

    folder: str = option('', 'folder of a saved net that was profiled and evaluated, or its id on the Hub')
    output: str = option('', 'folder for table and picture (default: simulation, in the folder of the net)')
    arrivals: str = option(
        'poisson', 'poisson, bursts, diurnal, ramp, flash, heavy, or a file with the time of one request per line'
    )
    loads: list[str] = option(
        ['0.2', '0.4', '0.6', '0.8', '1', '1.5', '2'],
        'requests per second, as shares of what the cheapest stitch can answer (not used with a file)',
    )
    seconds: float | None = option(
        None, 'length of each simulation, not used with a file (default: 60, or the time of 20,000 requests at load 1)'
    )
    period: float = option(10.0, 'seconds from burst to burst, or of a day')
    deadline_ms: float | None = option(
        None, 'milliseconds from arrival to deadline (default: three times what the slowest stitch takes)'
    )
    seed: int = option(0, 'seed of every random choice')
    setup: str = option('', 'part of the setup whose tables are used, such as cuda or bfloat16')
    factor: float = option(1.0, 'let batches take longer than the tables say by this factor')
    spread: float | None = option(None, 'standard deviation of the logarithm of batch times (default: as measured)')


def run(settings: SimulateSettings) -> list[PolicyOutcome]:
    """Simulates, prints the table, and writes simulation.json and, if matplotlib is installed, the picture.

    Raises:
        SnnetError: the folder holds no net, no accuracies or no tables; a setting is out of range.
    """
    from ..saving.hub import locate  # here, so that --help does not load numpy and torch
    from ..serve.arrivals import SHAPES
    from ..serve.compare_policies import PolicyOutcome, compare_policies, outcome_table
    from ..serve.simulation import World
    from ..serve.stitch_choices import Choices
    from ..utils.files import check_new_folder
    from ..utils.progress import Progress

    folder = locate(settings.folder)
    output = Path(settings.output or folder / 'simulation')
    check_new_folder(output)
    records, tables = _known(folder, settings.setup)
    stitches = Choices.of(records, tables)
    anchored = [record for record in records if record.anchor and record.top1 is not None]
    anchors = Choices.of(anchored, tables) if anchored else None
    deadline = _deadline(settings, stitches)
    world = World(settings.factor, settings.spread, settings.seed)
    capacity = stitches.rate(0, deadline / 2)
    print(f'{len(stitches)} stitches to choose from, batches up to {stitches.most}, by {tables[0].setup}')
    print(f'deadline {1000 * deadline:.4g} ms; the cheapest stitch answers at most {capacity:.4g} requests per second')
    rows: list[PolicyOutcome] = []
    traces = _traces(settings, capacity)
    runs = 4 + (anchors is not None) + (len(stitches) - 1).bit_length()  # the last: a search for the best fixed stitch
    progress = Progress(runs * sum(map(len, traces)), 'simulated requests')
    for moments in traces:
        length = _seconds(settings, capacity) if settings.arrivals in SHAPES else max(float(moments[-1]), 1e-9)
        rate = len(moments) / length
        found = compare_policies(stitches, anchors, moments, deadline, world, progress.update)
        fresh = [PolicyOutcome(rate / capacity, rate, *outcome) for outcome in found]
        lines = outcome_table(fresh).splitlines()
        print('\n'.join(lines[1:] if rows else lines), flush=True)
        rows += fresh
    progress.close()
    _write(output, rows, settings, deadline)
    return rows


def _known(folder: Path, wanted: str) -> tuple[list[Record], list[LatencyTable]]:
    """Records of a saved net, and its latency tables of one setup."""
    from ..budget.read_tables import read_tables
    from ..saving.config_json import read_config
    from ..saving.file_names import PROFILES, WEIGHTS

    config = read_config(folder)
    by_setup: dict[str, list[LatencyTable]] = {}
    for path, table in read_tables(folder / PROFILES, len(config.records)).items():
        if table.weights != config.sha256.get(WEIGHTS):
            _log.warning('%s is left out: it was measured with other weights', path)
        elif wanted.lower() in str(table.setup).lower():
            by_setup.setdefault(str(table.setup), []).append(table)
    if not by_setup:
        which = f' for a setup like {wanted!r}' if wanted else ''
        raise SnnetError(f'{folder} holds no latency table{which}: snnet profile FOLDER makes one')
    if len(by_setup) > 1:
        raise SnnetError(f'{folder} holds tables for several setups, choose with --setup: {"; ".join(by_setup)}')
    records = config.records
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
            f'no stitch meets a deadline of {1000 * deadline:.4g} ms: the fastest takes {1000 * least:.4g} ms'
        )
    return deadline


def _traces(settings: SimulateSettings, capacity: float) -> list[np.ndarray]:
    """Times of arrival for each load, or those of a file."""
    from ..serve.arrivals import SHAPES, draw_arrivals, read_arrivals

    if settings.arrivals not in SHAPES:
        path = Path(settings.arrivals)
        if not path.is_file():
            raise SnnetError(f"arrivals are {', '.join(SHAPES)}, or a file of times, not '{settings.arrivals}'")
        return [read_arrivals(path)]
    try:
        loads = [float(load) for load in settings.loads]
    except ValueError:
        raise SnnetError(f'loads are numbers such as 0.5, not {" ".join(settings.loads)}') from None
    traces, seconds = [], _seconds(settings, capacity)
    for index, load in enumerate(loads):
        seed = 1000 * settings.seed + index
        moments = draw_arrivals(settings.arrivals, load * capacity, seconds, seed, period=settings.period)
        if not len(moments):
            raise SnnetError(f'no request arrives in {seconds:g} s at load {load:g}: simulate longer')
        traces.append(moments)
    return traces


def _seconds(settings: SimulateSettings, capacity: float) -> float:
    """Length of each simulation."""
    return min(60.0, REQUESTS / capacity) if settings.seconds is None else settings.seconds


def _write(output: Path, rows: Sequence[PolicyOutcome], settings: SimulateSettings, deadline: float) -> None:
    from ..serve.compare_policies import POLICIES
    from ..serve.plot import draw_loads
    from ..utils.files import write_text

    output.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
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
