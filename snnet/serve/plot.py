"""The picture of a simulation: attainment and accuracy over load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..utils.figures import make_figure, save_figure
from .simulation import Outcome


def draw_loads(curves: Mapping[str, Sequence[tuple[float, Outcome]]], path: Path, title: str = '') -> list[Path]:
    """Draws, for each policy, the share of requests in time and their mean accuracy over load.

    Args:
        curves: load and outcome of each policy, by its name.
        path: file without suffix; a PNG and an SVG are written.
        title: headline.

    Returns:
        The files.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure = make_figure(8, 4)
    left, right = figure.subplots(1, 2)
    for name, points in curves.items():
        loads = [load for load, _ in points]
        left.plot(loads, [outcome.attainment for _, outcome in points], marker='o', markersize=3, label=name)
        right.plot(loads, [outcome.accuracy for _, outcome in points], marker='o', markersize=3, label=name)
    left.set(ylabel='answered in time (%)', ylim=(0, 103))
    right.set(ylabel='top-1 of those (%)')
    for axes in (left, right):
        axes.set_xlabel('load, as a share of what the cheapest stitch can answer')
        axes.grid(alpha=0.3)
    left.legend()
    figure.suptitle(title)
    return save_figure(figure, path)
