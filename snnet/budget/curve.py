"""The picture of a net: accuracy over FLOPs of every stitch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import MissingExtra, SnnetError
from .frontier import Record, frontier


def draw_curve(records: Sequence[Record], path: Path, title: str = '') -> list[Path]:
    """Draws every evaluated stitch, the anchors as stars, the frontier, and the honest baseline.

    The baseline is the line between neighboring anchors: what randomly mixing the two would give.

    Args:
        records: those without accuracy are left out.
        path: file without suffix; a PNG and an SVG are written.
        title: headline.

    Returns:
        The files.

    Raises:
        MissingExtra: matplotlib is not installed.
        SnnetError: nothing has been evaluated.
    """
    figure = make_figure(7, 4.5)
    from matplotlib.ticker import EngFormatter

    points = [(r.flops, r.top1, r.anchor) for r in records if r.flops is not None and r.top1 is not None]
    if not points:
        raise SnnetError('there is nothing to draw: no stitch has been evaluated')
    anchors = sorted((flops, top1) for flops, top1, anchor in points if anchor)
    stitches = [(flops, top1) for flops, top1, anchor in points if not anchor]
    best = [(r.flops, r.top1) for r in frontier(records) if r.flops is not None and r.top1 is not None]
    axes = figure.add_subplot()
    for line, style in (
        (anchors, {'color': '0.6', 'linestyle': '--', 'label': 'mixing two anchors at random'}),
        (best, {'color': 'tab:blue', 'linewidth': 1, 'label': 'frontier'}),
        (stitches, {'color': 'tab:blue', 'linestyle': '', 'marker': 'o', 'markersize': 4, 'label': 'stitch'}),
        (anchors, {'color': 'gold', 'linestyle': '', 'marker': '*', 'markersize': 15, 'label': 'anchor', 'mec': 'k'}),
    ):
        if line:
            axes.plot([flops for flops, _ in line], [top1 for _, top1 in line], **style)
    axes.set(xlabel='FLOPs (multiply-adds, one image)', ylabel='top-1 accuracy (%)', title=title)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right')
    return save_figure(figure, path)


def make_figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib, sizes in inches.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("drawing needs matplotlib: pip install 'snnet[plot]'") from None
    return Figure(figsize=(width, height), layout='constrained')


def save_figure(figure: Any, path: Path) -> list[Path]:
    """Writes a figure as PNG and SVG; the path has no suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(path.name + suffix) for suffix in ('.png', '.svg')]
    for file in files:
        figure.savefig(file, dpi=150)
    return files
