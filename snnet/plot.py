"""The picture of a net: accuracy over FLOPs of every stitch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import SnnetError
from .frontier import Record, frontier


def draw_curve(records: Sequence[Record], path: Path, title: str = '') -> list[Path]:
    """Draws every evaluated stitch, the anchors as stars, the frontier, and the honest baseline.

    The baseline is the line between neighbouring anchors: what randomly mixing the two would give.

    Args:
        records: those without accuracy are left out.
        path: file without suffix; a PNG and an SVG are written.
        title: headline.

    Returns:
        The files.

    Raises:
        SnnetError: matplotlib is not installed, or nothing has been evaluated.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SnnetError("drawing needs matplotlib: pip install 'snnet[plot]'") from None
    known = [(r.flops / 1e9, r.top1, r.anchor) for r in records if r.flops is not None and r.top1 is not None]
    if not known:
        raise SnnetError('there is nothing to draw: no stitch has been evaluated')
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.add_subplot()
    anchors = sorted((flops, top1) for flops, top1, anchor in known if anchor)
    best = [(r.flops / 1e9, r.top1) for r in frontier(records) if r.flops is not None]
    axes.plot(*zip(*anchors, strict=True), '--', color='0.6', label='mixing two anchors at random') if anchors else None
    axes.plot(*zip(*best, strict=True), '-', color='tab:blue', linewidth=1, label='frontier')
    stitches = [(flops, top1) for flops, top1, anchor in known if not anchor]
    if stitches:
        axes.plot(*zip(*stitches, strict=True), 'o', color='tab:blue', markersize=4, label='stitch')
    if anchors:
        axes.plot(*zip(*anchors, strict=True), '*', color='gold', markeredgecolor='k', markersize=15, label='anchor')
    axes.set(xlabel='GFLOPs (multiply-adds, one image)', ylabel='top-1 accuracy (%)', title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right')
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(suffix) for suffix in ('.png', '.svg')]
    for file in files:
        figure.savefig(file, dpi=150)
    return files
