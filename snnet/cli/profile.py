"""`snnet profile FOLDER`: measures latency and memory of a saved net's stitches on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..budget.frontier import frontier
from ..budget.record import Record
from ..config.sections import option
from ..errors import SnnetError

if TYPE_CHECKING:
    from ..budget.latency_table import LatencyTable

DTYPES = ('float32', 'bfloat16', 'float16')


@dataclass
class ProfileSettings:
    """Settings of `snnet profile`."""

    folder: str = option('', 'folder of a saved net, or its id on the Hub')
    batch_sizes: list[int] = option([1], 'images per call; each size gets its own table')
    stitches: str = option(
        'auto',
        "what is measured rather than predicted: all, frontier, ids such as '0-2,24', or auto (all if the time "
        'allows, else the frontier)',
    )
    predict: bool = option(True, 'predict the stitches that are not measured; otherwise they are left out')
    minutes: float = option(5.0, 'time limit for all tables together; auto measures all stitches if that fits in it')
    device: str = option('', 'cpu or cuda (default: a GPU if there is one)')
    dtype: str = option('float32', 'type of the weights: float32, bfloat16 or float16')
    amp: bool = option(False, 'mixed precision')
    amp_dtype: str = option('bfloat16', 'type of mixed precision: bfloat16 or float16')
    threads: int | None = option(None, 'CPU threads per operation (default: what torch uses)')
    compile: bool = option(False, 'compile the blocks with torch.compile first')
    overwrite: bool = option(False, 'measure again what already has a table')
    seed: int = option(0, 'seed of the images and of the order of calls')
    plugin: list[str] = option([], 'Python files that register networks and adapters')


def run(settings: ProfileSettings) -> list[LatencyTable]:
    """Profiles a saved net, writes the tables into its folder and prints them.

    Raises:
        SnnetError: a setting is out of range, or the folder holds no net.
    """
    import torch  # here, so that --help does not load torch

    from ..net.compile_blocks import compile_blocks
    from ..net.stitchable_net import StitchableNet
    from ..profiling.profile import profile
    from ..saving.file_names import PROFILES
    from ..saving.hub import locate
    from ..stitching.stitch import parse_ids
    from ..utils.mixed_precision import autocast
    from ..utils.plugins import import_plugins

    device = _checked_device(settings)
    import_plugins(settings.plugin)
    folder = locate(settings.folder)
    net = StitchableNet.from_pretrained(folder).to(device, getattr(torch, settings.dtype))
    words = ('auto', 'all', 'frontier')
    stitches = settings.stitches if settings.stitches in words else parse_ids(settings.stitches, len(net.stitches))
    if settings.compile:
        compile_blocks(net)
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads)
    try:
        with autocast(settings.amp, settings.amp_dtype, torch.device(device)):
            tables = profile(
                net,
                batches=settings.batch_sizes,
                stitches=stitches,
                predict=settings.predict,
                minutes=settings.minutes,
                folder=folder,
                overwrite=settings.overwrite,
                seed=settings.seed,
            )
    finally:
        torch.set_num_threads(threads)
    for table in tables:
        print(table)
        print(format_table(table, net.records))
        print('wrote', folder / PROFILES / table.file_name, flush=True)
    return tables


def _checked_device(settings: ProfileSettings) -> str:
    """The device to profile on, after a check of the settings that need no net."""
    import torch

    device = settings.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if settings.dtype not in DTYPES:
        raise SnnetError(f"dtype is one of {', '.join(DTYPES)}, not '{settings.dtype}'")
    if device not in ('cpu', 'cuda') or (device == 'cuda' and not torch.cuda.is_available()):
        raise SnnetError(f"there is no device '{device}': use --device cpu")
    if settings.threads is not None and settings.threads < 1:
        raise SnnetError(f'threads must be at least 1, not {settings.threads}')
    return device


def format_table(table: LatencyTable, records: Sequence[Record]) -> str:
    """The frontier over latency in plain text, or the measured stitches if none was evaluated."""
    records = table.applied(records)
    shown = frontier(records, 'latency_ms') or sorted(
        (records[stitch] for stitch in table.measured), key=lambda record: record.latency_ms or 0.0
    )
    rows = [f'{"id":>4}  {"GFLOPs":>8}  {"top-1":>6}  {"ms":>9}  {"10 % to 90 %":>19}  {"MB":>7}  stitch']
    for record in shown:
        row = table.rows[record.stitch]
        top1 = '' if record.top1 is None else f'{record.top1:.2f}'
        spread = f'{row.low:.4g} to {row.high:.4g}'
        mark = ' (predicted)' if row.predicted else ''
        rows.append(
            f'{record.stitch:>4}  {(record.flops or 0) / 1e9:>8.4g}  {top1:>6}  {row.ms:>9.4g}  {spread:>19}  '
            f'{row.memory / 1e6:>7.4g}  {record.legs}{mark}'
        )
    if table.error is not None:
        mean, largest = (f'{100 * table.error[name]:.2g} %' for name in ('mean', 'largest'))
        rows.append(f'predictions of each measured stitch from the others were off by {mean} (mean), {largest} at most')
    return '\n'.join(rows)
