"""One stitch as a file of torch.export or ONNX that runs without this package, checked against eager."""

from __future__ import annotations

import copy
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import Tensor

from ..anchors.anchor import Anchor
from ..budget.frontier import Record
from ..errors import SnnetError, reason_of
from ..net.extract import ExtractedStitch
from ..net.stitchable_net import StitchableNet
from ..utils.digest import digest_of_tensors
from ..utils.files import write_atomically
from ..utils.seeds import generator
from .formats import (
    FORMATS,
    INPUT,
    OUTPUT,
    Run,
    data_file,
    hushed,
    require,
    trace,
)

_log = logging.getLogger(__name__)
BATCHES = (1, 2, 5)
"""Batch sizes on which a file with a dynamic batch is compared with eager."""
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest difference to eager, as a share of the largest logit. Rounding makes 1e-5 of it in float32."""


@dataclass(frozen=True)
class Exported:
    """A written file.

    Attributes:
        path: the file.
        data: the file beside it that holds the weights, which an ONNX file of 2 GB cannot; None otherwise.
        format: 'pt2' or 'onnx'.
        stitch: id; None for an extracted stitch, which does not know its own.
        legs: the stitch in print.
        batches: sizes of the batches of random images on which it was compared with eager.
        difference: largest absolute difference of a logit.
        largest: largest absolute logit, to judge the difference by.
        metadata: what the file says of itself.
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

    The file maps `images` (N, C, H, W), normalized, to `logits` (N, classes), in eval mode on the CPU. It holds the
    stitch's own parameters alone, with the BatchNorm statistics that the stitch has, in the type of the net (bfloat16
    becomes float32 in ONNX, for engines lack it), and says in its metadata what it is: stitch, costs, accuracy, input
    and normalization, in the extra file `metadata.json` of a .pt2 and in the `metadata_props` of ONNX. It is read back
    from the disk and run, in onnxruntime where it is ONNX, before it takes the name `path`; an older file of that name
    is replaced, and remains where the new one fails.

    Args:
        net: a net in any mode, also compiled; or an extracted stitch, of which no costs and no accuracy are known,
            and whose normalization is that of its own first anchor. It is not changed.
        stitch: id; the active one where None, and None for an extracted stitch.
        path: file to write; its folder is made.
        format: 'pt2' (torch.export) or 'onnx'; by default what `path` ends in.
        batch: the only batch size that the file takes; any by default.

    Raises:
        MissingExtra: onnx, onnxscript or onnxruntime is missing.
        UnknownStitch: no such id.
        SnnetError: another format or batch size, a stitch that cannot be exported, or a file whose logits are not
            those of eager.
        OSError: the file cannot be written.
    """
    path = Path(path)
    format = checked_format(format, path)
    if batch is not None and batch < 1:
        raise SnnetError(f'a batch has at least one image, batch={batch} was asked for')
    return write(Cut(net, stitch, format, batch), path)


def checked_format(format: str | None, path: Path) -> str:
    """The format that was asked for or that a path ends in.

    Raises:
        SnnetError: neither names one, or they disagree.
        MissingExtra: it cannot be written here.
    """
    suffix = path.suffix.removeprefix('.')
    if format is None and suffix not in FORMATS:
        raise SnnetError(f"'{path}' ends in no format: end it in .{' or .'.join(FORMATS)}, or name the format")
    chosen = suffix if format is None else format
    if chosen not in FORMATS:
        raise SnnetError(f"a stitch is exported to {' or '.join(FORMATS)}, not to '{chosen}'")
    if suffix in FORMATS and suffix != chosen:
        raise SnnetError(f"'{path}' does not end as a file of {chosen} does: name it .{chosen}")
    require(chosen)
    return chosen


class Cut:
    """A stitch as it goes into a file: a copy in eval mode on the CPU, and what is known of it.

    Args:
        net: a net or an extracted stitch.
        stitch: id, or None.
        format: of the file.
        batch: fixed batch size, or None.
    """

    @torch.inference_mode(False)
    def __init__(
        self, net: StitchableNet | ExtractedStitch, stitch: int | None, format: str, batch: int | None
    ) -> None:
        self.format, self.batch = format, batch
        self.record: Record | None = None
        if isinstance(net, StitchableNet):
            chosen = net.active if stitch is None else net.checked(stitch)
            self.record, module, first = net.records[chosen], net.extract(chosen), net.anchor(0)
        elif stitch is not None:
            raise SnnetError(f'an extracted stitch is the only one in it, but stitch {stitch} was asked for')
        else:
            module = copy.deepcopy(net)
            first = anchors_of(module)[0]
        self.module = module.eval().requires_grad_(False).cpu().to(memory_format=torch.contiguous_format)
        if format == 'onnx' and self.dtype == torch.bfloat16:
            _log.warning('%s is exported in float32, for onnxruntime has no bfloat16 on a CPU', module.stitch)
            self.module.float()
        for anchor in anchors_of(module):
            anchor.clear_caches()
        self.input_size: tuple[int, int, int] = first.input_size
        self.preprocessing = resolve_data_config(
            {'input_size': first.input_size, **getattr(net, 'preprocessing', {})}, model=first.model, verbose=False
        )

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights, images and logits."""
        return next(self.module.parameters()).dtype

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What the file says of itself; what is not known is left out."""
        from .. import __version__

        record, module = self.record, self.module
        known = {
            'snnet': __version__,
            'stitch': record and record.stitch,
            'legs': str(module.stitch),
            'flops': record and record.flops,
            'params': record.params if record and record.params else sum(p.numel() for p in module.parameters()),
            'top1': record and record.top1,
            'input': INPUT,
            'input_size': list(self.input_size),
            'batch': self.batch or 'any',
            'dtype': str(self.dtype).removeprefix('torch.'),
            'output': OUTPUT,
            'classes': anchors_of(module)[-1].num_classes,
            **{name: self.preprocessing[name] for name in ('mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')},
        }
        return json.loads(json.dumps({key: value for key, value in known.items() if value is not None}))

    def fingerprint(self) -> str:
        """Tells apart what a file depends on: weights, what is computed with them, and what it says of itself."""
        official = [anchor.official for anchor in anchors_of(self.module)]
        about = repr((str(self.module), official, self.format, self.metadata))
        return digest_of_tensors(self.module.state_dict(), about)

    def images(self, count: int) -> Tensor:
        """Random images (count, C, H, W), the same at every call."""
        drawn = torch.randn(count, *self.input_size, generator=generator(0, 'export', count))
        return drawn.to(self.dtype)


def anchors_of(module: ExtractedStitch) -> list[Anchor]:
    """The anchors of an extracted stitch, one a leg."""
    return [anchor for anchor in module.anchors if isinstance(anchor, Anchor)]


@torch.inference_mode(False)
@torch.no_grad()
def write(cut: Cut, path: Path) -> Exported:
    """Writes a stitch into a file that has its name once it has been compared with eager (see `export`)."""
    data = data_file(path)
    batches = (cut.batch,) if cut.batch else BATCHES
    found = []

    def fill(temporary: Path) -> None:
        with _speaking(f'{cut.module.stitch}: tracing'):
            program = trace(cut.module, cut.images(cut.batch or 2), dynamic=cut.batch is None)
        with _speaking(f'{cut.module.stitch}: writing {cut.format}'):
            FORMATS[cut.format].write(program, cut.metadata, temporary, data.name)
        with _speaking(f'{cut.module.stitch}: comparing with eager'):
            found.append(_compare(cut, FORMATS[cut.format].load(temporary), batches))

    path.parent.mkdir(parents=True, exist_ok=True)
    if data.exists():  # a pair of files cannot be replaced in one step
        path.unlink(missing_ok=True)
        data.unlink()
    try:
        with hushed():
            write_atomically(path, fill)
    except BaseException as error:
        data.unlink(missing_ok=True)
        if isinstance(error, (SnnetError, OSError)) or not isinstance(error, Exception):
            raise
        fixed = '' if cut.batch else ' (a fixed batch size may do)'
        raise SnnetError(
            f'{cut.module.stitch} cannot be exported to {cut.format}{fixed}: {reason_of(error)}'
        ) from error
    stitch = cut.record.stitch if cut.record else None
    large = data if data.exists() else None
    return Exported(path, large, cut.format, stitch, str(cut.module.stitch), batches, *found[0], cut.metadata)


def _compare(cut: Cut, run: Run, batches: tuple[int, ...]) -> tuple[float, float]:
    """Largest difference between the logits of a file and of eager, and the largest logit.

    Raises:
        SnnetError: the difference is more than rounding, or the stitch itself gives logits that are not finite.
    """
    difference = largest = 0.0
    for count in batches:
        images = cut.images(count)
        wanted, logits = cut.module(images).double(), run(images).double()
        if not bool(wanted.isfinite().all()):
            raise SnnetError(
                f'{cut.module.stitch} is not exported: its own logits are not finite on random images in {cut.dtype}'
            )
        if logits.shape != wanted.shape:
            raise SnnetError(
                f'the exported {cut.module.stitch} gives logits {tuple(logits.shape)}, eager {tuple(wanted.shape)}'
            )
        apart = float((logits - wanted).abs().max())
        largest = max(largest, float(wanted.abs().max()))
        allowed = max(TOLERANCE[cut.dtype] * float(wanted.abs().max()), 1e-6)
        if not apart <= allowed:  # nor where it is NaN
            raise SnnetError(
                f'{cut.module.stitch} is not exported: on a batch of {count} the file differs from eager by '
                f'{apart:.2g}, and at most {allowed:.2g} is rounding'
            )
        difference = max(difference, apart)
    return difference, largest


@contextmanager
def _speaking(what: str) -> Iterator[None]:
    """Says every ten seconds what is being done within a `with` block."""
    over = threading.Event()

    def speak() -> None:
        seconds = 0
        while not over.wait(10):
            seconds += 10
            _log.info('%s for %d s', what, seconds)

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        over.set()
        speaker.join()
