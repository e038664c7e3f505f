"""Settings of the commands `snnet profile`, `export`, `simulate` and `info`."""

from __future__ import annotations

from dataclasses import dataclass

from .parse import option


@dataclass
class InfoSettings:
    """Settings of snnet info."""

    folder: str = option('', 'folder of a saved net, or its id on the hub')
    plugin: list[str] = option([], 'Python files that register networks and adapters')


@dataclass
class ProfileSettings:
    """Settings of `snnet profile`."""

    folder: str = option('', 'folder of a saved net, or its id on the hub')
    batch_sizes: list[int] = option([1], 'images a call; a table each')
    stitches: str = option(
        'auto',
        "what is measured rather than predicted: all, frontier, ids such as '0-2,24', or auto (all where the time "
        'allows, else the frontier)',
    )
    predict: bool = option(True, 'predict the stitches that are not measured; otherwise they are left out')
    minutes: float = option(5.0, 'time for a table within which auto measures all stitches')
    device: str = option('', 'cpu or cuda (default: a GPU where there is one)')
    dtype: str = option('float32', 'type of the weights: float32, bfloat16 or float16')
    amp: bool = option(False, 'mixed precision')
    amp_dtype: str = option('bfloat16', 'type of mixed precision: bfloat16 or float16')
    threads: int | None = option(None, 'CPU threads of one operation (default: what torch uses)')
    compile: bool = option(False, 'compile the blocks with torch.compile first')
    overwrite: bool = option(False, 'measure anew what has a table already')
    seed: int = option(0, 'of images and order')
    plugin: list[str] = option([], 'Python files that register networks and adapters')


@dataclass
class ExportSettings:
    """Settings of `snnet export`."""

    folder: str = option('', 'folder of a saved net, or its id on the hub')
    stitch: int | None = option(None, 'id of the stitch to export')
    budget: float | None = option(None, 'export the best stitch of at most so many FLOPs (multiply-adds an image)')
    params: float | None = option(None, 'export the best stitch of at most so many parameters')
    latency_ms: float | None = option(None, 'export the best stitch of at most so many milliseconds, as profiled')
    points: int | None = option(None, 'export a set instead: the frontier, thinned to so many stitches')
    format: str = option('', 'pt2 (torch.export) or onnx (default: what --output ends in, else pt2)')
    output: str = option('', 'file, or folder of a set (default: export or export/set, in the folder of the net)')
    overwrite: bool = option(False, 'replace what is there')
    batch: int | None = option(None, 'the only batch size that the file takes (default: any)')
    table: str = option('', 'table of latencies to believe, wherever and with whatever weights it was made')
    plugin: list[str] = option([], 'Python files that register networks and adapters')


@dataclass
class SimulateSettings:
    """Settings of snnet simulate."""

    folder: str = option('', 'folder of a saved net that was profiled and evaluated, or its id on the hub')
    output: str = option('', 'folder for table and picture (default: simulation, in the folder of the net)')
    arrivals: str = option(
        'poisson', 'poisson, bursts, diurnal, ramp, flash, heavy, or a file with the moment of one request a line'
    )
    loads: list[str] = option(
        ['0.2', '0.4', '0.6', '0.8', '1', '1.5', '2'],
        'requests a second, as shares of what the cheapest stitch can answer (not for a file)',
    )
    seconds: float | None = option(
        None, 'length of each simulation, not for a file (default: 60, or what 20,000 requests take at capacity)'
    )
    period: float = option(10.0, 'seconds from burst to burst, or of a day')
    deadline_ms: float | None = option(
        None, 'milliseconds from arrival to deadline (default: three times what the slowest stitch takes)'
    )
    seed: int = option(0, 'of every random choice')
    setup: str = option('', 'part of the setup whose tables are used, such as cuda or bfloat16')
    factor: float = option(1.0, 'let batches take longer than the tables say by this factor')
    spread: float | None = option(None, 'standard deviation of the logarithm of their times (default: as measured)')
