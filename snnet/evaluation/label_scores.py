"""The logits of stitches for images with several labels, which are ranked once all of them are known."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..net.stitchable_net import StitchableNet
from ..utils.progress import Progress
from .average_precision import mean_average_precision

_log = logging.getLogger(__name__)


class LabelScores:
    """A file that grows by the logits of each window of images, so that memory does not.

    Args:
        path: of the file: 4 bytes for each image, stitch and class.
        labels: whether each image has each label (images, classes).
        stitches: ids.
    """

    def __init__(self, path: Path, labels: np.ndarray, stitches: Sequence[int]) -> None:
        self.path, self.labels, self.stitches = path, labels, list(stitches)
        self._image = 4 * len(self.stitches) * labels.shape[1]  # bytes

    def window(self, width: int, device: torch.device) -> Tensor:
        """Room for the logits of the next `width` images (stitches, width, classes); ranks add theirs up."""
        return torch.zeros(len(self.stitches), width, self.labels.shape[1], device=device)

    def holds(self, done: int) -> bool:
        """Whether the logits of the first `done` images are there."""
        return not done or (self.path.is_file() and self.path.stat().st_size >= done * self._image)

    def add(self, window: Tensor, done: int) -> None:
        """Writes a window behind the first `done` images."""
        with open(self.path, 'r+b' if done else 'wb') as file:
            file.seek(done * self._image)
            file.write(window.transpose(0, 1).contiguous().cpu().numpy().tobytes())

    def mean_average_precisions(self, quiet: bool) -> dict[int, float | None]:
        """What `mean_average_precision` says of each stitch.

        Args:
            quiet: show no progress.
        """
        shape = (len(self.labels), len(self.stitches), self.labels.shape[1])
        logits, found = np.memmap(self.path, np.float32, 'r', shape=shape), dict[int, float | None]()
        progress = Progress(len(self.stitches), 'rankings of the images by a stitch', quiet=quiet)
        for row, stitch in enumerate(self.stitches):
            found[stitch] = mean_average_precision(np.array(logits[:, row]), self.labels)
            progress.update(1)
        progress.close()
        return found


def say_what_is_compared(net: StitchableNet, labelled: bool) -> None:
    """Warns where images have several labels and the net was made for one, or the other way round.

    Args:
        net: that is evaluated.
        labelled: whether the images have several labels.
    """
    if net.several_labels and not labelled:
        _log.warning(
            'the net says yes or no to each class, but these images have one class each (--labels names a table of '
            'several): top-1 is how often the most likely class is theirs, and the loss is the cross-entropy'
        )
    elif labelled and not net.several_labels:
        _log.warning(
            'the images have several labels, but the net does not say that it was trained on such images '
            '(net.several_labels): each logit is taken for a yes or no to its class'
        )
