"""One stitch as a file that runs without this package, compared with eager."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import SnnetError, reason_of
from ..net.extract import ExtractedStitch
from ..net.stitchable_net import StitchableNet
from ..utils.files import check_new_file, write_atomically
from ..utils.whole_number import whole_number
from .compare_with_eager import batch_sizes, compare_with_eager, eager_logits
from .formats import FORMATS, checked_format, data_file, quiet_exporters, trace
from .prepared_stitch import PreparedStitch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """A written file.

    Attributes:
        path: the file.
        data: the file beside it that holds the weights, if an ONNX file would be too large with them.
        format: 'pt2' or 'onnx'.
        stitch: id; None for an extracted stitch, which does not know its own.
        legs: the stitch as text.
        batches: sizes of the batches of random images on which it was compared with eager.
        difference: largest absolute difference of a logit.
        largest: largest absolute logit, to judge the difference by.
        metadata: the description that the file holds.
    """

    path: Path
    data: Path | None
    format: str
    stitch: int | None
    legs: str
    batches: tuple[int, ...]
    difference: float
    largest: float
    metadata: dict[str, Any]

    def __str__(self) -> str:
        sizes = ', '.join(map(str, self.batches))
        return (
            f'{self.path}{f" and {self.data}" if self.data else ""}: {self.legs}; largest difference to eager '
            f'{self.difference:.2g} (logits up to {self.largest:.3g}, batches of {sizes})'
        )


def export(
    net: StitchableNet | ExtractedStitch,
    stitch: int | None,
    path: str | Path,
    *,
    format: str | None = None,
    batch: int | None = None,
) -> Exported:
    """Writes one stitch as a file that runs without this package, and compares the file with eager.

    The file maps `images` (N, C, H, W), normalized, to `logits` (N, classes), in eval mode on the CPU. It holds only
    the parameters of the stitch and the BatchNorm statistics that the stitch has, in the type of the net (ONNX gets
    float32 instead of bfloat16, which engines lack). Metadata describe stitch, costs, accuracy, input and
    normalization, and hold `several_labels` where each logit says yes or no to its class by itself: the extra file
    `metadata.json` of a .pt2, and the `metadata_props` of ONNX.

    Before the file gets the name `path`, it is read back from the disk and run (in onnxruntime if it is ONNX). An older
    file of that name is replaced, and stays if the new one fails.

    Args:
        net: a net in any mode, compiled or not, or an extracted stitch, whose costs and accuracy are unknown. It is not
            changed.
        stitch: id; None for the active one. None for an extracted stitch.
        path: file to write; its folder is made.
        format: 'pt2' (torch.export) or 'onnx'; by default the suffix of `path`.
        batch: the only batch size that the file accepts; any by default.

    Raises:
        MissingExtra: onnx, onnxscript or onnxruntime is missing.
        UnknownStitch: there is no such id.
        SnnetError: the format, path or batch size is not possible, the stitch cannot be exported, or the logits of the
            file differ from those of eager.
        OSError: the file cannot be written.
    """
    path = Path(path)
    format = checked_format(format, path)
    batch = None if batch is None else whole_number('batch', batch, least=1)
    if isinstance(net, StitchableNet):
        net.known.verified(net, thorough=True)  # the file says what is known of its weights
    check_new_file(path)
    return write(PreparedStitch(net, stitch, format, batch), path)


@torch.inference_mode(False)
@torch.no_grad()
def write(prepared: PreparedStitch, path: Path) -> Exported:
    """Writes a stitch into a file, which gets its name after it has been compared with eager (see `export`)."""
    data = data_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if data.exists():  # a pair of files cannot be replaced in one step
        path.unlink(missing_ok=True)
        data.unlink()
    try:
        with quiet_exporters():
            difference, largest = write_atomically(path, lambda temporary: _fill(prepared, temporary, data.name))
    except BaseException as error:
        data.unlink(missing_ok=True)
        if isinstance(error, (SnnetError, OSError)) or not isinstance(error, Exception):
            raise
        remedy = '' if prepared.batch else ' (a fixed batch size may work)'
        raise SnnetError(
            f'{prepared.module.stitch} cannot be exported to {prepared.format}{remedy}: {reason_of(error)}'
        ) from error
    return Exported(
        path,
        data if data.exists() else None,
        prepared.format,
        prepared.record.stitch if prepared.record else None,
        str(prepared.module.stitch),
        batch_sizes(prepared),
        difference,
        largest,
        prepared.metadata,
    )


def _fill(prepared: PreparedStitch, temporary: Path, data: str) -> tuple[float, float]:
    """Writes a stitch to a temporary file, and returns its largest difference to eager and the largest logit."""
    name, format = prepared.module.stitch, FORMATS[prepared.format]
    eager = eager_logits(prepared)
    with _reporting(f'{name}: tracing'):
        images = prepared.random_images(prepared.batch or 2)
        program = trace(prepared.module, images, dynamic=prepared.batch is None)
    with _reporting(f'{name}: writing {prepared.format}'):
        format.write(program, prepared.metadata, temporary, data)
    with _reporting(f'{name}: comparing with eager'):
        return compare_with_eager(prepared, format.load(temporary), eager)


@contextmanager
def _reporting(what: str) -> Iterator[None]:
    """Logs every ten seconds what is being done within a `with` block."""
    over = threading.Event()

    def report() -> None:
        seconds = 0
        while not over.wait(10):
            seconds += 10
            _log.info('%s for %d s', what, seconds)

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        over.set()
        reporter.join()
