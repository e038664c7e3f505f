"""Draws the similarity of all boundaries, the partition of the zoo, and assemblies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.figures import make_figure, save_figure
from .assembly import Assembly
from .partition import Partition
from .similarity import Similarity

_ROW = 0.28
"""Height of a network's row in inches."""


def draw_similarity(similarity: Similarity, path: Path, title: str = '') -> list[Path]:
    """Draws the similarity of every two boundaries as a heat map, with lines between networks.

    Args:
        similarity: of a zoo.
        path: file without suffix; a PNG and an SVG are written.
        title: headline.

    Returns:
        The files.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    counts = similarity.positions
    side = min(16.0, max(6.0, 0.12 * len(similarity.boundaries)))
    figure = make_figure(side + 1, side)
    axes = figure.add_subplot()
    image = axes.imshow(similarity.matrix, vmin=0, vmax=1, cmap='magma', interpolation='nearest', rasterized=True)
    spans = [similarity.span(name) for name in counts]
    middles = [(span.start + span.stop - 1) / 2 for span in spans]
    for span in spans[1:]:
        axes.axhline(span.start - 0.5, color='white', linewidth=0.7)
        axes.axvline(span.start - 0.5, color='white', linewidth=0.7)
    axes.set_xticks(middles, list(counts), rotation=90, fontsize=8)
    axes.set_yticks(middles, list(counts), fontsize=8)
    axes.set_title(title)
    figure.colorbar(image, ax=axes, shrink=0.7, label='linear CKA (below 0 as 0)')
    return save_figure(figure, path)


def draw_partition(partition: Partition, path: Path, title: str = '') -> list[Path]:
    """Draws every network as a bar cut into its blocks, colored by equivalence set; centers have a frame.

    Args:
        partition: of a zoo.
        path: file without suffix; a PNG and an SVG are written.
        title: headline.

    Returns:
        The files.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure = make_figure(8, 1.5 + _ROW * len(partition.networks))
    axes = figure.add_subplot()
    for i, sets in enumerate(partition.sets):
        last = partition.cuts[i][-1]
        for k, which in enumerate(sets):
            block = partition.block(i, k)
            start, stop = partition.cuts[i][k], partition.cuts[i][k + 1]
            style = {'edgecolor': 'black' if block in partition.centers else 'white', 'linewidth': 1.5}
            axes.barh(i, (stop - start) / last, 0.8, start / last, color=f'C{which % 10}', **style)
            axes.text((start + stop) / 2 / last, i, f'{start}:{stop}', ha='center', va='center', fontsize=7)
    _name_rows(axes, partition.networks)
    axes.set(xlabel='depth (share of the modules of the line); framed: center of the set', title=title)
    axes.legend(
        handles=[_patch(f'C{which % 10}', f'set {which + 1}') for which in range(partition.stages)],
        loc='upper left',
        bbox_to_anchor=(1, 1),
    )
    return save_figure(figure, path)


def draw_assemblies(assemblies: Sequence[Assembly], partition: Partition, path: Path, title: str = '') -> list[Path]:
    """Draws assemblies, the best on top, as bars of blocks colored by network and named by it.

    Args:
        assemblies: at least one.
        partition: of the zoo that they are made from.
        path: file without suffix; a PNG and an SVG are written.
        title: headline.

    Returns:
        The files.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure = make_figure(10, 1.5 + 1.6 * _ROW * len(assemblies))
    axes = figure.add_subplot()
    for i, assembly in enumerate(assemblies):
        for k, block in enumerate(assembly.blocks):
            color = f'C{partition.networks.index(block.anchor) % 10}'
            axes.barh(i, 1, 0.8, k, color=color, alpha=0.6, edgecolor='white', linewidth=1.5)
            text = f'{block.anchor}\n{block.start}:{block.stop}'
            axes.text(k + 0.5, i, text, ha='center', va='center', fontsize=7)
    _name_rows(axes, [f'{a.score:.3f}  {a.flops / 1e9:.3g} GFLOPs  {a.params / 1e6:.3g} M' for a in assemblies])
    axes.set_xticks([k + 0.5 for k in range(partition.stages)], [f'stage {k + 1}' for k in range(partition.stages)])
    axes.set_title(title)
    return save_figure(figure, path)


def _patch(color: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color, label=label)


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names), fontsize=8)
    axes.invert_yaxis()
    for side in ('top', 'right', 'left'):
        axes.spines[side].set_visible(False)
