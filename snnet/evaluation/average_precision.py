"""Average precision: how well logits rank the images with a label before those without it."""

from __future__ import annotations

import numpy as np


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Average precision of one class, from 0 to 1: the sum over thresholds of precision times the rise in recall.

    Images with the same score share a threshold, and nothing is interpolated, as in scikit-learn. A score that is not a
    number ranks last.

    Args:
        scores: (images,).
        labels: whether each image has the label (images,); at least one does.
    """
    ranked = np.nan_to_num(scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    order = np.argsort(-ranked, kind='stable')
    ranked, right = ranked[order], labels[order].astype(np.int64)
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # the last image of each threshold
    found = right.cumsum()[ends]
    return float((np.diff(found, prepend=0) * found / (ends + 1)).sum() / right.sum())


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean of the average precision over the classes that occur, in percent; None where none does.

    Args:
        scores: such as logits (images, classes).
        labels: whether each image has each label (images, classes).
    """
    values = [average_precision(scores[:, i], labels[:, i]) for i in np.flatnonzero(labels.any(axis=0))]
    return 100 * float(np.mean(values)) if values else None
