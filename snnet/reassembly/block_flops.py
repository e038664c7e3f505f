"""FLOPs of the modules of a line that runs without the prefix tokens of its network."""

from __future__ import annotations

from torch import Tensor, nn

from ..anchors.anchor import Anchor
from ..anchors.flops import trace


def flops_without_prefix(anchor: Anchor) -> tuple[int | None, ...]:
    """Multiply-adds per image of every module of a line behind a join that lost the prefix tokens.

    Returns:
        One number per module; None from the first module on that does not run like this.
    """
    modules: list[int | None] = []
    count = len(anchor.line())
    for stop in range(count, 0, -1):
        run = _WithoutPrefix(anchor, stop)
        try:
            counts = trace(run, anchor.input_size).by_module()
        except Exception:  # anything a module may raise when it misses tokens: try a shorter line
            continue
        modules = [int(counts[f'parts.{i}']) for i in range(stop)]
        break
    return (*modules, *[None] * (count - len(modules)))


class _Module(nn.Module):
    """Gives a module of a line a name in the trace."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = (module,)  # in a tuple, so that it is not registered: the anchor holds the modules

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._module[0](x)
        return out


class _WithoutPrefix(nn.Module):
    """The stem, then the first modules of a line on the features without prefix tokens."""

    def __init__(self, anchor: Anchor, stop: int) -> None:
        super().__init__()
        self.anchor = anchor
        self.parts = nn.ModuleList(_Module(module) for module in anchor.line()[:stop])

    def forward(self, x: Tensor) -> Tensor:
        x = self.anchor.stem(x)[:, self.anchor.boundaries[0].prefix :]
        for part in self.parts:
            x = part(x)
        return x
