"""StitchableNet: anchors, stitch layers, and the stitches that run through them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..anchors.anchor import Anchor
from ..anchors.boundary import Boundary
from ..anchors.normalization import align_normalization
from ..budget.frontier import Record
from ..errors import CannotStitch, UnknownStitch
from ..reparam import fold
from ..stitching.space import check_anchors
from ..stitching.stitch import Leg, Stitch
from ..stitching.stitch_layer import StitchLayer
from .batchnorm import Statistics, Table, bake, detach, normalizing_with
from .budgeted import Budgeted
from .extract import ExtractedStitch
from .pretrained import Pretrained

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger(__name__)
_using: ContextVar[Mapping[int, int]] = ContextVar('stitches in use', default=MappingProxyType({}))
"""The stitch of each net inside its `using`, by the net's identity: a context variable, so that threads differ."""


class StitchableNet(Budgeted, Pretrained):
    """One network that is a whole family: runs any of its stitches on demand.

    It is handed built anchors and builds only the stitch layers. Parameters are named `anchors.{i}.model.*`, as in
    the wrapped models, and `stitch_layers.{l}.weight` and `.bias`.

    Args:
        anchors: one or more, with distinct names, one class count and one image size.
        stitches: the sub-networks; a stitch's id is its index.

    Attributes:
        stitches: the sub-networks, by id.
        records: what is known of each, by id.

    Raises:
        CannotStitch: a leg runs an anchor or a position that is not there, or boundaries do not join.
    """

    def __init__(self, anchors: Sequence[Anchor], stitches: Sequence[Stitch]) -> None:
        super().__init__()
        check_anchors(anchors)
        align_normalization(anchors)
        self.anchors = nn.ModuleList(anchors)
        self.stitches = tuple(stitches)
        self._index = {anchor.name: i for i, anchor in enumerate(anchors)}
        self.stitch_layers = nn.ModuleList(self._build_layers())
        self.records = [
            Record(i, str(stitch), anchor=stitch.legs == (Leg(stitch.legs[0].anchor),))
            for i, stitch in enumerate(self.stitches)
        ]
        self._default = 0
        self._statistics: Statistics | None = None

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return self.anchor(0).num_classes

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.anchor(0).input_size

    @property
    def title(self) -> str:
        """The names of the anchors, from small to large."""
        return ' > '.join(self._index)

    def anchor(self, which: int | str) -> Anchor:
        """The anchor with this index or name."""
        found = self.anchors[self._index[which] if isinstance(which, str) else which]
        assert isinstance(found, Anchor)
        return found

    def layer(self, index: int) -> StitchLayer:
        """The stitch layer with this index."""
        found = self.stitch_layers[index]
        assert isinstance(found, StitchLayer)
        return found

    @property
    def statistics(self) -> Statistics | None:
        """BatchNorm statistics of the stitches; None until `snnet.recalibrate`, and again once weights change."""
        if self._statistics is not None and not self._statistics.intact():
            self.set_statistics(None)
            _log.warning('the weights have changed, so the stitches lose their BatchNorm statistics: recalibrate anew')
        return self._statistics

    def set_statistics(self, statistics: Statistics | None) -> None:
        """Lets every recalibrated stitch run with statistics of its own in eval mode; None takes them away."""
        detach(self)
        if statistics is not None:
            statistics.attach()
        self._statistics = statistics

    def forward(self, x: Tensor, stitch: int | None = None) -> Tensor:
        """Image (N, C, H, W) to logits (N, classes).

        Args:
            x: images.
            stitch: id of the stitch to run, without touching any state (safe from many threads at once); the active
                one where None.

        Raises:
            UnknownStitch: no such id.
        """
        index = self.active if stitch is None else self.checked(stitch)
        chosen, tables = self.stitches[index], self.tables(index)
        for i, leg in enumerate(chosen.legs):
            if i:
                x = self.stitch_layers[chosen.layers[i - 1]](x)
            if tables is None:
                x = self.anchor(leg.anchor).run(x, leg.start, leg.stop)
            else:
                with normalizing_with(tables[i]):
                    x = self.anchor(leg.anchor).run(x, leg.start, leg.stop)
        return x

    def train(self, mode: bool = True) -> Self:
        """Train or eval mode; train mode takes the stitches' statistics away, for weights will change."""
        if mode and self._statistics is not None:
            self.set_statistics(None)
            _log.warning('train mode: the stitches lose their BatchNorm statistics; recalibrate after training')
        return super().train(mode)

    @property
    def active(self) -> int:
        """Id of the stitch that `forward` runs here: that of `using`, else that of `set_stitch`, else 0."""
        return _using.get().get(id(self), self._default)

    def set_stitch(self, stitch: int) -> None:
        """Makes a stitch the active one of all threads; nothing is allocated or copied.

        Raises:
            UnknownStitch: no such id.
        """
        self._default = self.checked(stitch)

    @contextmanager
    def using(self, stitch: int) -> Iterator[StitchableNet]:
        """Makes a stitch the active one of this thread or task within a `with` block, whatever `set_stitch` says."""
        token = _using.set({**_using.get(), id(self): self.checked(stitch)})
        try:
            yield self
        finally:
            _using.reset(token)

    def select_for_budget(
        self,
        flops: float | None = None,
        *,
        params: float | None = None,
        latency_ms: float | None = None,
        memory: float | None = None,
        batch: int = 1,
    ) -> int:
        """Activates the best stitch within all given limits and returns its id.

        Arguments and errors are those of `choose`; where accuracy could not decide, a warning says so, for that loses
        up to half a point.
        """
        selection = self.choose(flops, params=params, latency_ms=latency_ms, memory=memory, batch=batch)
        selection.warn()
        _log.info('%s', selection)
        self.set_stitch(selection.record.stitch)
        return selection.record.stitch

    def extract(self, stitch: int) -> ExtractedStitch:
        """Cuts one stitch out: a plain module with copies of only its own parameters and the same output.

        Raises:
            UnknownStitch: no such id.
        """
        chosen = self.stitches[self.checked(stitch)]
        legs = [self.anchor(leg.anchor).cut(leg.start, leg.stop) for leg in chosen.legs]
        for leg, twin, table in zip(chosen.legs, legs, self.tables(stitch) or (), strict=False):
            bake(self.anchor(leg.anchor), twin, table)
        layers = [self.layer(index).merged() for index in chosen.layers]
        return fold(ExtractedStitch(chosen, legs, layers))

    def parameter_names(self, stitch: int) -> frozenset[str]:
        """Names of the parameters that take part in a stitch.

        Raises:
            UnknownStitch: no such id.
        """
        chosen = self.stitches[self.checked(stitch)]
        names = {f'stitch_layers.{i}.{name}' for i in chosen.layers for name, _ in self.layer(i).named_parameters()}
        for leg in chosen.legs:
            used = self.anchor(leg.anchor).parameter_names(leg.start, leg.stop)
            names |= {f'anchors.{self._index[leg.anchor]}.model.{name}' for name in used}
        return frozenset(names)

    def tables(self, stitch: int) -> tuple[Table, ...] | None:
        """BatchNorm statistics of each leg of a stitch; None where it runs with those of its anchors."""
        statistics = self.statistics
        return None if statistics is None else statistics.tables(stitch)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Takes along what is known of the weights where the net is moved or converted (torch's hook for `to`, ...)."""
        statistics, fingerprint = self.statistics, self.fingerprint
        super()._apply(fn, recurse)
        if statistics is not None:
            self.set_statistics(statistics.converted(self, fn))
        self.note_saved(fingerprint)
        self.show_latencies()
        return self

    def checked(self, stitch: int) -> int:
        """The id as an int.

        Raises:
            UnknownStitch: no such id.
        """
        if type(stitch) is int and 0 <= stitch < len(self.stitches):
            return stitch  # at every call: to ask an abstract class, as below, takes longer than all other look-ups
        valid = isinstance(stitch, Integral) and not isinstance(stitch, bool) and 0 <= stitch < len(self.stitches)
        if not valid:
            raise UnknownStitch(f'stitch ids are the integers 0 to {len(self.stitches) - 1}, but got {stitch!r}')
        return int(stitch)

    def _build_layers(self) -> list[StitchLayer]:
        """One layer an index, checked against every stitch that uses it."""
        ends: dict[int, tuple[Boundary, Boundary]] = {}
        for stitch in self.stitches:
            for leg in stitch.legs:
                self._check_leg(leg)
            for layer, front, end in zip(stitch.layers, stitch.legs, stitch.legs[1:], strict=False):
                pair = self._boundary(front.anchor, front.stop), self._boundary(end.anchor, end.start)
                if not pair[0].joins(pair[1]):
                    raise CannotStitch(f'{stitch}: the front gives {pair[0]}, the end takes {pair[1]}')
                if ends.setdefault(layer, pair) != pair:
                    raise CannotStitch(f'{stitch}: stitch layer {layer} already joins other boundaries')
        if sorted(ends) != list(range(len(ends))):
            raise CannotStitch(f'stitch layers are numbered 0 to {len(ends) - 1} without gaps, but got {sorted(ends)}')
        return [StitchLayer(*ends[layer]) for layer in range(len(ends))]

    def _boundary(self, anchor: str, position: int | None) -> Boundary:
        assert position is not None  # a Stitch has positions at both sides of a stitch layer
        return self.anchor(anchor).boundaries[position]

    def _check_leg(self, leg: Leg) -> None:
        if leg.anchor not in self._index:
            raise CannotStitch(f"leg {leg}: there is no anchor '{leg.anchor}', only {', '.join(self._index)}")
        last = len(self.anchor(leg.anchor).line())
        start, stop = leg.start or 0, last if leg.stop is None else leg.stop
        if not 0 <= start <= stop <= last:
            raise CannotStitch(f'leg {leg}: positions of {leg.anchor} run from 0 to {last}')
