"""Figures of matplotlib, written as PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import MissingExtra


def make_figure(width: float, height: float) -> Any:
    """An empty figure.

    Args:
        width, height: inches.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra('drawing', ['matplotlib'], 'plot', error) from error
    return Figure(figsize=(width, height), layout='constrained')


def save_figure(figure: Any, path: Path) -> list[Path]:
    """Writes a figure as PNG and SVG.

    Args:
        figure: a figure of matplotlib.
        path: file without suffix; its folder is made.

    Returns:
        The two files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(path.name + suffix) for suffix in ('.png', '.svg')]
    for file in files:
        figure.savefig(file, dpi=150)
    return files
