"""A network as a line: stem -> [entry, block, block, ...] ... -> head, with numbered positions between the modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from timm.models import checkpoint
from torch import Tensor, nn

from ..errors import CannotStitch, SnnetError, reason_of
from ..utils.modes import still_statistics
from .boundary import Boundary, boundary_of
from .survey import Survey, used_parameters

__all__ = ['Absent', 'Anchor', 'Boundary', 'Source', 'Stage']


@dataclass(frozen=True)
class Stage:
    """A run of blocks on one grid.

    Attributes:
        blocks: the modules that can be cut between.
        entry: the downsampling that opens the stage; None where the first block does it itself.
    """

    blocks: Sequence[nn.Module]
    entry: nn.Module | None = None


@dataclass(frozen=True)
class Source:
    """How `timm.create_model` makes the network again: `create_model(model, **args)`."""

    model: str
    args: dict[str, Any]


class Anchor(nn.Module):
    """A pretrained network as a line; a subclass is the adapter of a family and gives four answers.

    The answers are `layout`, `stem`, `stages` and `head`; run in sequence they compute exactly what the model
    computes. The model keeps its parameter names (`model.blocks.3...`), and its modules are looked up at every run, so
    that a block may be replaced at any time.

    Args:
        model: the network, untouched.
        name: what messages and stitches call it.
        input_size: channels, height and width of an input image.
        source: how to make the model again, needed only by `save_pretrained`.
        official: end stitches as the published implementation did (see `published_head`).
    """

    layout: str = 'NCHW'
    own_grid = False
    """Whether modules may be tied to the grid that they were made for (see `tied`)."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        input_size: tuple[int, int, int],
        source: Source | None = None,
        official: bool = False,
    ) -> None:
        super().__init__()
        self.model: Any = model  # Any: adapters reach into networks of many classes
        self.name = name
        self.input_size = input_size
        self.source = source
        self.official = official
        self.frozen = False
        self.checkpointing = False
        """Whether blocks are run again in the backward pass instead of keeping what is inside them."""

    # The four answers of an adapter (layout is an attribute), and two that have a default.

    def stem(self, x: Tensor) -> Tensor:
        """Image (N, C, H, W) to the features at position 0."""
        raise NotImplementedError

    def stages(self) -> list[Stage]:
        """The stages, looked up in the model now."""
        raise NotImplementedError

    def head(self, x: Tensor) -> Tensor:
        """Features at the last position to logits (N, classes)."""
        raise NotImplementedError

    def published_head(self, x: Tensor) -> Tensor:
        """The head as the published implementation ran it behind a stitch layer."""
        return self.head(x)

    def stitch_stages(self) -> range:
        """Stages that are stitched: all but the last, or the only one (SN-Net, section 4.1)."""
        return range(max(1, len(self.stages()) - 1))

    def tied(self, position: int, module: nn.Module) -> bool:
        """Whether the module behind a position goes wrong, perhaps in silence, on another grid than its own."""
        return False

    # What follows from them.

    @property
    def prefix(self) -> int:
        """Prefix tokens of a token sequence."""
        return int(getattr(self.model, 'num_prefix_tokens', 0)) if self.layout == 'NLC' else 0

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return int(self.model.num_classes)

    def flowing(self, position: int) -> tuple[str, int]:
        """Layout and prefix at a position: everywhere the same in a family."""
        return self.layout, self.prefix

    def line(self) -> list[nn.Module]:
        """Entries and blocks in the order they run; position p lies before module p."""
        return [m for stage in self.stages() for m in (stage.entry, *stage.blocks) if m is not None]

    def blocks(self) -> list[range]:
        """Of each stage, the indices of its blocks in `line()`."""
        spans, at = [], 0
        for stage in self.stages():
            first = at + (stage.entry is not None)
            at = first + len(stage.blocks)
            spans.append(range(first, at))
        return spans

    def run(self, x: Tensor, start: int | None = None, stop: int | None = None) -> Tensor:
        """Runs the modules from position `start` to position `stop`.

        Args:
            x: an image where `start` is None (the stem runs), else the features at `start`.
            start: a position, or None for the image.
            stop: a position, or None for the logits (the head runs).

        Raises:
            CannotStitch: what flows in has another size than modules on the way are tied to.
        """
        line = self.line()
        if self.own_grid:
            self._check_size(x, line, start, stop)
        if start is None:
            x = self.stem(x)
        again = self.checkpointing and torch.is_grad_enabled()
        for module in line[start:stop]:
            x = _recomputed(module, x) if again else module(x)
        if stop is not None:
            return x
        return self.published_head(x) if self.official and start is not None else self.head(x)

    def _check_size(self, x: Tensor, line: list[nn.Module], start: int | None, stop: int | None) -> None:
        own = self.input_size if start is None else self.boundaries[start].shape
        if tuple(x.shape[1:]) == own:
            return
        for position in range(len(line))[start:stop]:
            if self.tied(position, line[position]):
                given, made = ('x'.join(str(int(n)) for n in shape) for shape in (x.shape[1:], own))
                what = type(line[position]).__name__
                raise CannotStitch(
                    f'{self.name}: {what} {position} of its line is tied to one size: '
                    f'it runs on {made} from position {start or "0 (images)"}, not on {given}'
                )

    def forward(self, x: Tensor) -> Tensor:
        """The whole network: image (N, C, H, W) to logits (N, classes)."""
        return self.run(x)

    @property
    def boundaries(self) -> tuple[Boundary, ...]:
        """What flows at each position, measured by one pass."""
        return self.survey.boundaries

    @cached_property
    def survey(self) -> Survey:
        """Measures boundaries and who uses which parameter, on a copy without memory (torch's meta device)."""
        with torch.inference_mode(False), torch.enable_grad():
            try:
                return self._measure(self._meta_twin())
            except Exception:  # whatever a network does that needs real numbers: measure a real copy
                try:
                    return self._measure(self.duplicate().eval())
                except Exception as error:  # no AttributeError may leave a property of a module: torch would hide it
                    size = 'x'.join(map(str, self.input_size))
                    reason = reason_of(error)
                    raise CannotStitch(f'{self.name} does not run as a line on an image of {size}: {reason}') from error

    def parameter_names(self, start: int | None = None, stop: int | None = None) -> frozenset[str]:
        """Names (within the model) of the parameters that take part in `run(x, start, stop)`."""
        used = set(self.survey.stem if start is None else ()).union(*self.survey.modules[start:stop])
        if stop is None:
            used |= self.survey.published_head if self.official and start is not None else self.survey.head
        return frozenset(used)

    def cut(self, start: int | None = None, stop: int | None = None) -> Anchor:
        """A copy that holds only what `run(x, start, stop)` needs; positions stay as they are."""
        keep = self.parameter_names(start, stop)
        line = self.line()
        ends = [m for m, runs in zip(self.edges(), (start is None, stop is None), strict=False) if runs]
        kept = {id(m) for part in (*line[start:stop], *ends) for m in part.modules()}
        inside = {id(m) for block in line for m in block.modules()}
        memo: dict[int, Any] = {}
        for name, module in self.model.named_modules():
            if id(module) in inside:
                drop = id(module) not in kept
            else:  # of stem and head: what has parameters and needs none of them, unless it contains blocks
                own = {f'{name}.{p}' for p, _ in module.named_parameters()}
                drop = bool(own) and not own & keep and not any(id(m) in inside for m in module.modules())
            if drop:
                memo[id(module)] = Absent(name)
        twin = self.duplicate(memo)
        outside = [name for name, p in twin.model.named_parameters(remove_duplicate=False) if name not in keep]
        for name in outside:
            owner, _, leaf = name.rpartition('.')
            twin.model.get_submodule(owner).register_parameter(leaf, None)
        return twin

    def edges(self) -> list[nn.Module]:
        """Stem and head, where they are modules that may call what blocks call, too."""
        return []

    def duplicate(self, memo: dict[int, Any] | None = None) -> Anchor:
        """A deep copy; `memo` maps ids of objects to what takes their place, as for `copy.deepcopy`."""
        self.forget_caches()
        return copy.deepcopy(self, memo)

    def freeze(self) -> None:
        """Keeps what is pretrained as it is: no parameter is trained, and eval mode stays, also after `train()`."""
        self.requires_grad_(False)
        self.frozen = True
        self.eval()

    def train(self, mode: bool = True) -> Anchor:
        """Train or eval mode; a frozen anchor stays in eval mode (batch norms, drop path)."""
        return super().train(mode and not self.frozen)

    def forget_caches(self) -> None:
        """Drops what the model derived from its weights and would go on using when they change."""

    def _meta_twin(self) -> Anchor:
        memo: dict[int, Any] = {}
        for p in self.parameters():
            memo[id(p)] = nn.Parameter(torch.empty_like(p, device='meta'), requires_grad=p.is_floating_point())
        for b in self.buffers():
            memo[id(b)] = torch.empty_like(b, device='meta')
        return self.duplicate(memo).eval()

    def _measure(self, twin: Anchor) -> Survey:
        """Runs a copy part by part and sees what flows and which parameters autograd reaches."""
        names = {id(p): name for name, p in twin.model.named_parameters()}
        weight = next(twin.parameters())
        x = torch.zeros(1, *self.input_size, device=weight.device, dtype=weight.dtype)
        boundaries, used = [], []
        parts: list[Callable[[Tensor], Tensor]] = [twin.stem, *twin.line()]
        for position, part in enumerate(parts):
            x = part(x.detach().requires_grad_().clone())  # a copy, which a part may write into
            boundaries.append(self._boundary(x, *self.flowing(position)))
            used.append(used_parameters(x, names))
        x = x.detach().requires_grad_()
        heads = [used_parameters(head(x.clone()), names) for head in (twin.head, twin.published_head)]
        return Survey(tuple(boundaries), used[0], tuple(used[1:]), heads[0], heads[1])

    def _boundary(self, x: Tensor, layout: str, prefix: int) -> Boundary:
        found = boundary_of(tuple(x.shape), layout, prefix, self.input_size)
        if found is None:
            height, width = self.input_size[1:]
            raise CannotStitch(
                f'{self.name}: {x.shape[1] - prefix} tokens do not form a grid shaped like {height}x{width} pixels'
            )
        return found

    def __repr__(self) -> str:
        spans = ' + '.join(str(len(span)) for span in self.blocks())
        return f'{type(self).__name__}({self.name}: {spans} blocks, {self.num_classes} classes)'


class Absent(nn.Module):
    """Stands where a part was cut out; running it is a mistake."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Refuses."""
        raise SnnetError(f'{self.name} was cut out of this network: it runs only the stitch it was extracted for')


def _recomputed(module: nn.Module, x: Tensor) -> Tensor:
    """Runs a module whose backward pass runs it again, instead of keeping what it computes."""
    return checkpoint(module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), still_statistics(module)))
