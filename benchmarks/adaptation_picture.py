"""Draws what adapting was worth: stitches before and after, and the line of mixing their anchors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import snnet
from snnet.utils.figures import make_figure, save_figure


def draw(before: Sequence[snnet.Record], after: Sequence[snnet.Record], path: Path, title: str) -> list[Path]:
    """Draws a line for each stitch, from its accuracy before adapting to that after it.

    Args:
        before, after: records of the same stitches with FLOPs and top-1, the anchors among them.
        path: file without suffix; a PNG and an SVG are written.
        title: headline.

    Returns:
        The files.
    """
    figure = make_figure(6.4, 4)
    axes = figure.subplots()
    anchors = [record for record in after if record.anchor]
    axes.plot(*_points(snnet.frontier(anchors)), color='0.45', linestyle='--', label='mixing the anchors')
    axes.plot(*_points(anchors), 'D', color='black', markersize=5, label='anchors')
    pairs = [(old, new) for old, new in zip(before, after, strict=True) if not new.anchor]
    for old, new in pairs:
        axes.plot(*_points([old, new]), color='tab:blue', linewidth=0.7, alpha=0.5)
    axes.plot(*_points([old for old, _ in pairs]), 'o', color='0.65', markersize=4, label='stitches before')
    axes.plot(*_points([new for _, new in pairs]), 'o', color='tab:blue', markersize=5, label='adapted')
    axes.set(xlabel='multiply-adds per image (millions)', ylabel='top-1 (%)', title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
    return save_figure(figure, path)


def _points(records: Sequence[snnet.Record]) -> tuple[list[float], list[float]]:
    return [(record.flops or 0) / 1e6 for record in records], [record.top1 or 0.0 for record in records]
