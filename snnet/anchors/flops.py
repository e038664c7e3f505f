"""FLOPs of the parts of an anchor's line, counted in one trace. Only this file imports fvcore."""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from ..errors import SnnetError, reason_of
from ..utils.eval_mode import eval_mode
from .anchor import Anchor
from .product_flops import HANDLES

_log = logging.getLogger(__name__)
_HEAVY = re.compile(
    r'attention|transformer|matmul|conv|linear|addm|einsum|tensordot|cdist|lstm|gru|rnn|fft|stft|mm$|::(mv|dot|inner)$|'
    r'linalg_(?!norm|vector_norm|matrix_norm|cross|diagonal)|matrix_(exp|power)|solve|cholesky|inverse|kron|trilinear|'
    r'cosine_similarity|pairwise_distance|svd|::(det|logdet|slogdet|qr|lu|lstsq|cov|corrcoef)$|geqrf|ormqr|lobpcg|PythonOp'
)
"""Operations that multiply as a matrix product does, or may: a function with its own gradient hides what it does."""

_Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PartFlops:
    """Multiply-adds per image of the parts of an anchor's line.

    Attributes:
        stem, modules, head: of the stem, of each module of the line, of the head.
        published_head: of the head as the published implementation ran it behind a stitch layer.
    """

    stem: int
    modules: tuple[int, ...]
    head: int
    published_head: int

    @property
    def whole(self) -> int:
        """Multiply-adds of the whole anchor, from image to logits."""
        return self.stem + sum(self.modules) + self.head

    def of_run(self, start: int | None, stop: int | None, official: bool) -> int:
        """Multiply-adds of `anchor.run(x, start, stop)` per image."""
        total = sum(self.modules[start:stop])
        if start is None:
            total += self.stem
        if stop is None:
            total += self.published_head if official and start is not None else self.head
        return total


def part_flops(anchor: Anchor) -> PartFlops:
    """Counts every part of an anchor in one trace, and warns of costly operations that cannot be counted.

    Multiply-adds per image in fvcore's convention: a norm counts per element; biases, activations and additions count
    nothing.
    """
    parts: list[_Run] = [anchor.stem, *anchor.line()]
    heads: list[_Run] = [anchor.head, anchor.published_head]
    network = _Parts(anchor, parts, heads)
    analysis = trace(network, anchor.input_size)
    counts = analysis.by_module()
    for op in sorted(uncounted(analysis)):
        places = _places_of(analysis, network, op)
        _log.warning(
            '%s: FLOPs leave out %s in %s, which cannot be counted',
            anchor.name, op, ', '.join(places[:3]) + (', ...' if len(places) > 3 else ''),
        )  # fmt: skip
    flops = [int(counts[f'parts.{i}']) for i in range(len(parts) + len(heads))]
    return PartFlops(flops[0], tuple(flops[1 : len(parts)]), *flops[len(parts) :])


def trace(network: nn.Module, input_size: tuple[int, int, int]) -> FlopCountAnalysis:
    """fvcore's analysis of a network for one image, in eval mode, with fused attention counted."""
    weight = next(network.parameters())
    image = torch.zeros(1, *input_size, device=weight.device, dtype=weight.dtype)
    with eval_mode(network), torch.no_grad(), _slow_paths(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # tracing warns about every shape that becomes a constant
        analysis = FlopCountAnalysis(network, image).ancestor_mode('caller')
        for operation, handle in HANDLES.items():
            analysis.set_op_handle(operation, handle)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings('none')
        try:
            analysis.total()
        except Exception as error:  # of torch.jit.trace, whatever the network does
            raise SnnetError(
                f'FLOPs cannot be counted, because tracing the network fails with {reason_of(error)}'
            ) from error
    return analysis


@contextmanager
def _slow_paths() -> Iterator[None]:
    """Lets torch's own transformer modules run as single operations, which can be counted, not as one fused call."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def uncounted(analysis: FlopCountAnalysis) -> Counter[str]:
    """Operations named like a matrix product, convolution or attention that were not counted."""
    return Counter({op: count for op, count in analysis.unsupported_ops().items() if _HEAVY.search(op)})


def _places_of(analysis: FlopCountAnalysis, network: _Parts, op: str) -> list[str]:
    """The innermost modules of an anchor's network that run an operation which was not counted."""
    names = [name for name, _ in network.anchor.model.named_modules(prefix='anchor.model')]
    names = [name for name in names if analysis.unsupported_ops(name).get(op)]
    inner = [name for name in names if not any(other.startswith(f'{name}.') for other in names)]
    return [name.removeprefix('anchor.model.') for name in inner if name != 'anchor.model'] or ['its forward']


class _Part(nn.Module):
    """Gives a part of a line its own name in the trace."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self._run = (run,)  # in a tuple, which keeps it from being registered: the anchor holds the modules

    def forward(self, x: Tensor) -> Tensor:
        return self._run[0](x)


class _Parts(nn.Module):
    """Runs the parts of a line in sequence, then each of the heads on the last features."""

    def __init__(self, anchor: Anchor, parts: Sequence[_Run], heads: Sequence[_Run]) -> None:
        super().__init__()
        self.anchor = anchor
        self.parts = nn.ModuleList(_Part(run) for run in (*parts, *heads))
        self.heads = len(heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        for part in self.parts[: -self.heads]:
            x = part(x)
        return [head(x) for head in self.parts[-self.heads :]]
