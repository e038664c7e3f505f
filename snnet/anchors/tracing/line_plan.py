"""From a network to the parts of its line: records it in several ways, and writes each stretch as code."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import CannotStitch, reason_of
from ..boundary import Boundary, boundary_of
from ..weightless import meta_tensors
from .dataflow import Dataflow, needed
from .node_match import NodeMatch
from .recording import Recording, record
from .run_steps import RunSteps
from .segment import Segment
from .stretch import CrossingFlow, NeededInside, Stretch
from .stretch_code import StretchCode
from .units import find_spans

Size = tuple[int, int, int]
_BATCH = 2


class LinePlan:
    """How a network becomes a line.

    Args:
        model: the network.
        name: what messages call it.
        size: channels, height and width of an image.

    Attributes:
        parts: stem, modules and head, each the name of a module of the network or a stretch of its code.
        entries: for each module, whether it only opens a stage.
        layouts: what flows at each position.
        classes: width of the logits.

    Raises:
        CannotStitch: there are fewer than two blocks, or the network cannot be recorded.
    """

    def __init__(self, model: nn.Module, name: str, size: Size) -> None:
        self.model, self.name, self.size = model, name, size
        self.size_bound = False
        self.run = self._record(size)
        self.other, self.growth = self._elsewhere()
        self.match = NodeMatch(self.run, self.other) if self.other else None
        flow = Dataflow(self.run, self._layout)
        spans = find_spans(flow, model)
        at = [spans[0].start, *(span.stop for span in spans)]
        self.entries = [span.entry for span in spans]
        self.layouts = [found for i in at if (found := self._layout(self.run.nodes[i]))]
        self.classes = int(self.run.output.meta['value'].shape[-1])
        self.open_paths = self._open_modules(at)
        self.parts = self._written(at)

    def _written(self, at: list[int]) -> list[str | Segment]:
        """Stem, modules and head, cut at these nodes."""
        cuts = [0, *at, None]
        while True:
            try:
                stretches = self._stretches(self.run, cuts)
                learning = self._learning(cuts)
                break
            except NeededInside as found:
                self.open_paths.add(found.path)
        codes = [
            (StretchCode(s.graph), StretchCode(t.graph)) for (s, _), (t, _) in zip(stretches, learning, strict=True)
        ]
        fixed = (
            self.other is None
            or any(bound for _, bound in stretches)
            or self._depends_on_size(cuts, [a for a, _ in codes])
        )
        parts: list[str | Segment] = []
        for i, ((stretch, bound), (evaluating, training)) in enumerate(zip(stretches, codes, strict=True)):
            paths = list(dict.fromkeys([*stretch.paths, *learning[i][0].paths]))
            if evaluating.source == training.source:
                training = evaluating
                if stretch.lone and 0 < i < len(stretches) - 1:
                    parts.append(stretch.paths[0])
                    continue
            shape = self.size if i == 0 and fixed else None
            if bound:
                shape = tuple(self.run.nodes[stretch.start].meta['value'].shape[1:])
            what = ', '.join(paths[:2]) + (', ...' if len(paths) > 2 else '')
            title = self.name + (f' ({what})' if i and what else '')
            parts.append(Segment(self.model, paths, (evaluating, training), shape, title))
        return parts

    def _stretches(self, run: Recording, cuts: list[Any]) -> list[tuple[Stretch, bool]]:
        """Each stretch, and whether it holds a number that is right for one image size only."""
        steps, alive = RunSteps(run, self.open_paths), needed(run.output, run.nodes)
        match = NodeMatch(run, self.run)
        self.back = [match.index(i) for i in range(len(run.nodes))]
        found = []
        for start, stop in pairwise(cuts):
            self.size_bound = False
            try:
                found.append((Stretch(steps, start, stop, alive, self._bind), self.size_bound))
            except CrossingFlow as error:
                where = run.nodes[start].meta['path']
                raise CannotStitch(f'what {error} computes is used after {where}, on a path around it') from None
        return found

    def _learning(self, cuts: list[Any]) -> list[tuple[Stretch, bool]]:
        """The stretches in train mode."""
        run = self._record(self.size, training=True)
        match = NodeMatch(self.run, run)
        there = [None if c is None else match.index(c) for c in cuts]
        alive = sorted(needed(run.output, run.nodes))
        if any(c is not None and (t is None or t not in alive) for c, t in zip(cuts, there, strict=True)):
            raise CannotStitch('it computes along other paths in train mode than in eval mode')
        return self._stretches(run, there)

    def _depends_on_size(self, cuts: list[Any], codes: list[StretchCode]) -> bool:
        """Whether the code would differ for images of another size."""
        assert self.other
        assert self.match
        try:
            there = self._stretches(self.other, [None if c is None else self.match.index(c) for c in cuts])
        except (CannotStitch, NeededInside, TypeError):
            return True
        return [StretchCode(s.graph).source for s, _ in there] != [code.source for code in codes]

    def _open_modules(self, at: list[int]) -> set[str]:
        """Modules that have a position inside, and those that only wrap one module of the line."""
        found = {''}
        inner = {(call.first, call.last): call for call in self.run.calls}
        for call in self.run.calls:
            out = call.output.meta['index'] if isinstance(call.output, fx.Node) else None
            if out in at and inner[call.first, call.last] is not call:
                found.add(call.path)
            for i in at:
                if call.first <= i < call.last and i != out:
                    found.add(call.path)
        return found

    def _bind(self, node: fx.Node, x: fx.Node) -> Any:
        """A number that was computed before a stretch: a constant, or a multiple of the batch size."""
        value, index = node.meta['value'], self.back[node.meta['index']]
        larger = None if index is None else self.batched.nodes[index].meta['value']
        if larger is None:
            raise CannotStitch(
                f'{node.meta["path"]} computes a number that a later block needs, but only for some batch sizes'
            )
        if value == larger:
            elsewhere = self.match.value(index) if self.match and index is not None else None
            self.size_bound |= elsewhere != value
            return value
        if value * (_BATCH + 1) != larger * _BATCH:
            raise CannotStitch(f'{node.meta["path"]} computes a number from the batch that a later block needs')
        batch = x.graph.call_method('size', (x, 0))
        return batch if value == _BATCH else x.graph.call_function(operator.mul, (batch, value // _BATCH))

    @cached_property
    def batched(self) -> Recording:
        """A run with one image more: tells which numbers depend on the batch size."""
        run = self._record(self.size, batch=_BATCH + 1)
        if len(run.nodes) != len(self.run.nodes):
            raise CannotStitch('it computes other things for another number of images')
        return run

    def _layout(self, node: fx.Node) -> Boundary | None:
        """What flows at a node, if it is a feature map or tokens; the axes that grow with the image are its grid."""
        value = node.meta['value']
        if not isinstance(value, Tensor) or value.ndim not in (3, 4) or len(value) != _BATCH:
            return None
        shape = tuple(value.shape)
        there = self.match.value(node.meta['index']) if self.match else None
        grown = tuple(there.shape) if isinstance(there, Tensor) and there.ndim == len(shape) else None
        if len(shape) == 4:
            return boundary_of(shape, self._map(shape, grown), 0, self.size)
        if grown and (grown[2] != shape[2] or grown[1] == shape[1]):
            return None
        prefixes = [int(getattr(self.model, 'num_prefix_tokens', 0)), *range(17)]
        if grown:
            prefix, rest = divmod(self.growth * shape[1] - grown[1], self.growth - 1)
            prefixes = [prefix] if not rest and prefix >= 0 else []
        height, width = self.size[1:]
        for prefix in prefixes:
            found = boundary_of(shape, 'NLC', prefix, self.size)
            if found and found.grid[0] * width == found.grid[1] * height:
                return found
        return None

    def _map(self, shape: tuple[int, ...], grown: tuple[int, ...] | None) -> str:
        if grown and grown != shape:
            return 'NHWC' if grown[1] != shape[1] else 'NCHW'
        if (shape[1] == shape[2]) != (shape[2] == shape[3]):
            return 'NHWC' if shape[1] == shape[2] else 'NCHW'
        return str(getattr(self.model, 'output_fmt', 'NCHW'))

    def _elsewhere(self) -> tuple[Recording | None, int]:
        """A run on larger images, if the network takes them, and the factor by which their area is larger."""
        channels, height, width = self.size
        for larger, growth in (((channels, 2 * height, width), 2), ((channels, 2 * height, 2 * width), 4)):
            try:
                return self._record(larger), growth
            except CannotStitch:
                continue
        return None, 1

    def _record(self, size: Size, batch: int = _BATCH, training: bool = False) -> Recording:
        """A run on a copy without numbers, or on a real copy where the network needs them."""
        error: Exception | None = None
        for make in (_meta_copy(torch.float64), _meta_copy(None), copy.deepcopy):
            twin = make(self.model).train(training).requires_grad_()
            tensor = next(twin.parameters(), torch.zeros(1))
            image = torch.zeros(batch, *size, device=tensor.device, dtype=tensor.dtype)
            try:
                with torch.random.fork_rng(devices=[]):
                    return record(twin, image)
            except CannotStitch:
                raise
            except Exception as caught:  # whatever a network does that such tensors cannot
                error = caught
        raise CannotStitch(f'on an image of {"x".join(map(str, size))} it fails with: {reason_of(error)}')  # type: ignore[arg-type]


def _meta_copy(dtype: torch.dtype | None) -> Callable[[nn.Module], nn.Module]:
    """Makes copies on torch's meta device whose floating-point tensors have this type."""
    return lambda model: copy.deepcopy(model, meta_tensors(model, dtype))
