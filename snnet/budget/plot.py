"""The picture of a net: the accuracy of every stitch over its FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import SnnetError
from ..utils.figures import make_figure, save_figure
from .frontier import frontier
from .record import Record


def draw_curve(records: Sequence[Record], path: Path, title: str = '') -> list[Path]:
    """Draws every evaluated stitch, the anchors as stars, the frontier, and the baseline.

    The baseline is the line between neighboring anchors: what mixing the two at random would give.

    Args:
        records: records; those without accuracy are left out.
        path: file without suffix; a PNG and an SVG are written.
        title: title of the figure.

    Returns:
        The files.

    Raises:
        MissingExtra: matplotlib is not installed.
        SnnetError: no stitch has been evaluated.
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
    axes.set(xlabel='FLOPs (multiply-adds per image)', ylabel='top-1 accuracy (%)', title=title)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right')
    return save_figure(figure, path)
