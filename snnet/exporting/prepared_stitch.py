"""A stitch as it goes into a file."""

from __future__ import annotations

import copy
import json
import logging
from functools import cached_property
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import Tensor

from ..anchors.anchor import Anchor
from ..budget.record import Record
from ..errors import SnnetError
from ..net.extract import ExtractedStitch
from ..net.stitchable_net import StitchableNet
from ..utils.digest import digest_of_tensors
from ..utils.seeds import generator
from .onnx import INPUT, OUTPUT

_log = logging.getLogger(__name__)


class PreparedStitch:
    """A copy of a stitch in eval mode on the CPU, and what is known about it.

    Args:
        net: a net or an extracted stitch; it is not changed.
        stitch: id; None for the active one, and for an extracted stitch.
        format: format of the file.
        batch: the only batch size, or None for any.

    Attributes:
        record: costs and accuracy; None for an extracted stitch.
        module: maps images (N, C, H, W) to logits (N, classes).
        input_size: (C, H, W).
        preprocessing: normalization, interpolation and crop, in timm's words.
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
        elif not isinstance(net, ExtractedStitch):
            raise SnnetError(f'a net or an extracted stitch is exported, not a {type(net).__name__}')
        elif stitch is not None:
            raise SnnetError(f'an extracted stitch holds no other stitches, but stitch {stitch} was asked for')
        else:
            module = copy.deepcopy(net)
            first = _anchors_of(module)[0]
        self.module = module.eval().requires_grad_(False).cpu().to(memory_format=torch.contiguous_format)
        if format == 'onnx' and self.dtype == torch.bfloat16:
            _log.warning(
                '%s is exported in float32, because onnxruntime does not support bfloat16 on CPUs', module.stitch
            )
            self.module.float()
        for anchor in _anchors_of(module):
            anchor.clear_caches()
        self.input_size: tuple[int, int, int] = first.input_size
        self.preprocessing = {**_preprocessing_of(first), **getattr(net, 'preprocessing', {})}

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights, images and logits."""
        return next(self.module.parameters()).dtype

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The description that goes into the file; what is unknown is left out."""
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
            'classes': _anchors_of(module)[-1].num_classes,
            'several_labels': module.several_labels or None,
            **{name: self.preprocessing[name] for name in ('mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')},
        }
        plain: dict[str, Any] = json.loads(
            json.dumps({key: value for key, value in known.items() if value is not None})
        )
        return plain

    def fingerprint(self) -> str:
        """A digest of all that a file depends on: weights, computation and description."""
        official = [anchor.official for anchor in _anchors_of(self.module)]
        about = repr((str(self.module), official, self.format, self.metadata))
        return digest_of_tensors(self.module.state_dict(), about)

    def random_images(self, count: int) -> Tensor:
        """Random images (count, C, H, W), the same at every call."""
        drawn = torch.randn(count, *self.input_size, generator=generator(0, 'export', count))
        return drawn.to(self.dtype)


def _preprocessing_of(first: Anchor) -> dict[str, Any]:
    """How images are prepared that come to the first anchor of a net or of an extracted stitch."""
    found: dict[str, Any] = resolve_data_config({'input_size': first.input_size}, model=first.model, verbose=False)
    given = first.normalization if first.renormalize is None else first.renormalize.given
    return found if given is None else {**found, 'mean': given.mean, 'std': given.std}


def _anchors_of(module: ExtractedStitch) -> list[Anchor]:
    """The anchors of an extracted stitch, one per leg."""
    return [anchor for anchor in module.anchors if isinstance(anchor, Anchor)]
