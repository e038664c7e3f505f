"""How well a stitch does on each class, and which classes it takes for which."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.files import write_text

CLASSES = 'classes.csv'
"""File with the accuracy of every stitch on every class, beside the results."""


def accuracy_per_class(hits: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    """Accuracy within each class, in percent (classes,); not a number where a class has no image.

    Args:
        hits: whether each image was right (images,).
        targets: classes of the images (images,).
        classes: how many there are.
    """
    images = np.bincount(targets, minlength=classes)
    right = np.bincount(targets, weights=hits, minlength=classes)
    accuracies = np.full(classes, np.nan)
    accuracies[images > 0] = 100 * right[images > 0] / images[images > 0]
    return accuracies


def mean_per_class(hits: np.ndarray, targets: np.ndarray) -> float:
    """Mean over the classes with images of the accuracy within each, in percent."""
    return float(np.nanmean(accuracy_per_class(hits, targets, int(targets.max()) + 1)))


def write_classes(path: Path, hits: Mapping[int, np.ndarray], targets: np.ndarray, names: Sequence[str]) -> None:
    """Writes a table with a row per class: number, name, images, and the accuracy of every stitch in percent.

    Args:
        path: of the CSV file, which is written whole or not at all.
        hits: of each stitch, whether it is right (images,).
        targets: classes of the images (images,).
        names: of all classes, by number.
    """
    images = np.bincount(targets, minlength=len(names))
    stitches = sorted(hits)
    accuracies = [accuracy_per_class(hits[stitch], targets, len(names)) for stitch in stitches]
    rows: list[list[Any]] = [['class', 'name', 'images', *(f'stitch {stitch}' for stitch in stitches)]]
    for i, name in enumerate(names):
        cells = ['' if np.isnan(column[i]) else f'{column[i]:.2f}' for column in accuracies]
        rows.append([i, name, int(images[i]), *cells])
    _write(path, rows)


def write_confusion(path: Path, answers: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> None:
    """Writes how many images of each class (rows) a stitch takes for each class (columns).

    Args:
        path: of the CSV file, which is written whole or not at all.
        answers: the most likely class of each image (images,).
        targets: its true class (images,).
        names: of all classes, by number.
    """
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (targets, answers), 1)
    _write(path, [['class', *names], *([name, *row.tolist()] for name, row in zip(names, counts, strict=True))])


def _write(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    write_text(path, text.getvalue())
