"""`snnet export FOLDER`: writes a stitch of a saved net, or a set of them, as files that run elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.sections import option
from ..errors import SnnetError

if TYPE_CHECKING:
    from ..net.stitchable_net import StitchableNet


@dataclass
class ExportSettings:
    """Settings of `snnet export`."""

    folder: str = option('', 'folder of a saved net, or its id on the Hub')
    stitch: int | None = option(None, 'id of the stitch to export')
    budget: float | None = option(None, 'export the best stitch of at most this many FLOPs (multiply-adds per image)')
    params: float | None = option(None, 'export the best stitch of at most this many parameters')
    latency_ms: float | None = option(None, 'export the best stitch of at most this many milliseconds, as profiled')
    points: int | None = option(None, 'export a set instead: the frontier, reduced to this many stitches')
    format: str = option('', 'pt2 (torch.export) or onnx (default: the suffix of --output, else pt2)')
    output: str = option('', 'file, or folder of a set (default: export or export/set, in the folder of the net)')
    overwrite: bool = option(False, 'replace existing files')
    triton: str = option('', 'folder for a model repository of Triton with the files of an ONNX set (with --points)')
    batch: int | None = option(None, 'the only batch size that the file accepts (default: any)')
    table: str = option('', 'latency table to use, even if it was made elsewhere or with other weights')
    plugin: list[str] = option([], 'Python files that register networks and adapters')


def run(settings: ExportSettings) -> None:
    """Writes one stitch or a set, and prints what was written.

    Raises:
        SnnetError: the settings contradict each other, the folder holds no net, or no stitch fits.
        OSError: a file cannot be written.
    """
    from ..budget.latency_table import LatencyTable
    from ..net.stitchable_net import StitchableNet  # here, so that --help does not load torch
    from ..utils.plugins import import_plugins

    given = _limits(settings)
    import_plugins(settings.plugin)
    net = StitchableNet.from_pretrained(settings.folder)
    if settings.table:
        net.add_table(LatencyTable.read(Path(settings.table)), force=True)
    if settings.points is not None:
        _export_set(net, settings, settings.points)
    else:
        stitch = net.checked(settings.stitch) if settings.stitch is not None else net.select_for_budget(**given)
        _export_one(net, settings, stitch)


def _limits(settings: ExportSettings) -> dict[str, Any]:
    """The budgets that were given, after a check that the settings name one thing to export."""
    limits = {'flops': settings.budget, 'params': settings.params, 'latency_ms': settings.latency_ms}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    ways = sum([settings.stitch is not None, bool(given), settings.points is not None])
    if ways != 1:
        raise SnnetError(
            'choose one of: a stitch (--stitch ID), limits that it must keep (--budget, --params, --latency-ms), '
            f'or a set from the frontier (--points N); {"none was" if ways == 0 else "several were"} given'
        )
    if settings.output and settings.points is None and not Path(settings.output).parent.is_dir():
        raise SnnetError(f"there is no folder '{Path(settings.output).parent}' for --output {settings.output}")
    if settings.triton and (settings.points is None or settings.format != 'onnx'):
        raise SnnetError('--triton needs a set of ONNX files: --points N --format onnx')
    return given


def _export_one(net: StitchableNet, settings: ExportSettings, stitch: int) -> None:
    from ..exporting.export import export
    from ..exporting.formats import checked_format

    path = _path(settings, f'stitch{stitch}.{settings.format or "pt2"}')
    format = checked_format(settings.format or None, path)
    if path.exists() and not settings.overwrite:
        raise SnnetError(f'{path} already exists: replace it with --overwrite, or choose another --output')
    print('wrote', export(net, stitch, path, format=format, batch=settings.batch))


def _export_set(net: StitchableNet, settings: ExportSettings, points: int) -> None:
    from ..exporting.export_set import export_set
    from ..exporting.set_index import INDEX
    from ..exporting.triton_repository import write_triton_repository

    made = export_set(
        net,
        settings.output or _folder(settings) / 'set',
        points,
        format=settings.format or 'pt2',
        batch=settings.batch,
        overwrite=settings.overwrite,
    )
    for entry in made.entries:
        record, gigas = entry.record, (entry.record.flops or 0) / 1e9
        print(
            f'{entry.path}: {record.legs}, {gigas:.4g} GFLOPs, {record.top1:.2f} % top-1; '
            f'largest difference to eager {entry.difference:.2g}'
        )
    print('wrote', made.folder / INDEX)
    if settings.triton:
        for name in write_triton_repository(made, settings.triton):
            print('wrote', Path(settings.triton) / name)


def _path(settings: ExportSettings, name: str) -> Path:
    """The file to write: --output itself, or a file of this name in --output or in the default folder."""
    if not settings.output:
        return _folder(settings) / name
    path = Path(settings.output)
    return path / name if path.is_dir() else path


def _folder(settings: ExportSettings) -> Path:
    """The default folder: inside the folder of the net, or in the working directory if the net is on the Hub."""
    folder = Path(settings.folder)
    return folder / 'export' if folder.is_dir() else Path('export')
