"""Weights of the classes in the loss: so that rare classes count as much as frequent ones, or as a file says."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.datasets import class_names, targets_of
from ..errors import SnnetError, did_you_mean, reason_of

BALANCED = 'balanced'


def class_weights(text: str, dataset: Any, classes: int) -> Tensor | None:
    """The weight of each class (classes,), with a mean of 1 over the training images; None where none are asked for.

    Args:
        text: 'balanced', or a CSV file whose rows are the name of a class and its weight; '' for none.
        dataset: of the training images.
        classes: how many there are.

    Raises:
        SnnetError: the data set does not list its classes, or the file does not name each of them once.
    """
    if not text:
        return None
    targets = targets_of(dataset)
    if targets is None:
        raise SnnetError('class weights need a data set that lists the class of every image, such as a folder')
    counts = torch.bincount(torch.tensor(targets), minlength=classes).double()
    weights = 1 / counts.clamp(min=1) if text == BALANCED else _read(Path(text), class_names(dataset, classes))
    return (weights * counts.sum() / (weights * counts).sum()).float()


def _read(path: Path, names: list[str]) -> Tensor:
    """The weights in a file, in the order of the classes."""
    try:
        with open(path, newline='', encoding='utf-8') as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SnnetError(
            f"class_weights is '{BALANCED}' or a CSV file, but {path} cannot be read: {reason_of(error)}"
        ) from None
    found: dict[str, float] = {}
    for row in rows:
        try:
            name, weight = row[0].strip(), float(row[1])
        except (IndexError, ValueError):
            raise SnnetError(f"{path}: a row is the name of a class and its weight, not '{','.join(row)}'") from None
        if name not in names:
            raise SnnetError(f"{path}: there is no class '{name}'{did_you_mean(name, names)}")
        if name in found or not (0 <= weight < math.inf):
            raise SnnetError(f"{path}: class '{name}' needs one weight of at least 0")
        found[name] = weight
    missing = [name for name in names if name not in found]
    if missing or not any(found.values()):
        raise SnnetError(f'{path} has no weight for {", ".join(missing[:5]) or "any class"}')
    return torch.tensor([found[name] for name in names], dtype=torch.float64)
