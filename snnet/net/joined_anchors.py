"""Anchors, the stitch layers between them, and the stitches that run through both."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cached_property
from numbers import Integral
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..anchors.align_normalization import align_normalization
from ..anchors.anchor import Anchor
from ..anchors.class_names import checked_names
from ..errors import UnknownStitch
from ..stitching.check_anchors import check_anchors
from ..stitching.stitch import Stitch
from ..stitching.stitch_layer import StitchLayer
from .build_layers import build_layers
from .feature_levels import FeatureLevels, Level
from .projections import make_projections
from .stitch_tensors import Table, computing_with

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger(__name__)
_using: ContextVar[Mapping[int, int]] = ContextVar('stitches in use', default=MappingProxyType({}))
"""The stitch of each net inside its `using`, by the net's identity: a context variable, so that threads differ."""


class JoinedAnchors(nn.Module):
    """Runs any stitch, the active one or one by its id; knows nothing of costs or accuracies.

    `StitchableNet` builds on it. What only needs to run stitches or to know how they lie takes this class.

    Args:
        anchors: one or more, with distinct names, one class count and one image size.
        stitches: the sub-networks; a stitch's id is its index.

    Attributes:
        stitches: the sub-networks, by id.
        preprocessing: how images are prepared for evaluation where that differs from the first anchor's own way, in
            timm's words ('crop_pct', 'interpolation'); saved with the net.
        several_labels: whether each logit says yes or no to its class by itself, because images have several labels
            (`train.py --labels`): the probability of a class is then the sigmoid of its logit. Saved with the net.

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
        self.stitch_layers = nn.ModuleList(build_layers(dict(zip(self._index, anchors, strict=True)), self.stitches))
        self._default = 0
        self.projections = make_projections(anchors)
        self.preprocessing: dict[str, Any] = {}
        self.several_labels = all(anchor.several_labels for anchor in anchors)
        self._class_names = anchors[0].class_names if len({anchor.class_names for anchor in anchors}) == 1 else None

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return self.anchor(0).num_classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of the logits, saved with the net; None where nothing says them.

        They are known of timm's weights for ImageNet and after training on folders. Assign a list to set them.

        Raises:
            SnnetError: where another number of names is assigned than there are classes, or one is not printable.
        """
        names = self._class_names
        return names if names and len(names) == self.num_classes else None  # the classifiers may be others by now

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        found = None if names is None else checked_names(names, self.num_classes)
        if found:
            _warn_of_twins(found)
        self._class_names = found

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

    def index_of(self, name: str) -> int:
        """The index of the anchor with this name."""
        return self._index[name]

    def layer(self, index: int) -> StitchLayer:
        """The stitch layer with this index."""
        found = self.stitch_layers[index]
        assert isinstance(found, StitchLayer)
        return found

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
            with nullcontext() if tables is None else computing_with(tables[i]):
                if i:
                    x = self.stitch_layers[chosen.layers[i - 1]](x)
                x = self.anchor(leg.anchor).run(x, leg.start, leg.stop)
        return x

    def tables(self, stitch: int) -> tuple[Table, ...] | None:
        """What a stitch has for itself in each leg; None where it runs with the tensors of the net, as here."""
        return None

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
    def using(self, stitch: int) -> Iterator[Self]:
        """Makes a stitch the active one of this thread or task within a `with` block, whatever `set_stitch` says.

        Other threads do not see it, not even those that are started within the block. A server with a pool of threads
        calls `net(images, stitch=...)` in each of them instead.

        Raises:
            UnknownStitch: no such id.
        """
        token = _using.set({**_using.get(), id(self): self.checked(stitch)})
        try:
            yield self
        finally:
            _using.reset(token)

    def parameter_names(self, stitch: int) -> frozenset[str]:
        """Names of the parameters that take part in a stitch.

        Raises:
            UnknownStitch: no such id.
        """
        return frozenset[str]().union(*self.parameter_names_in_turn(stitch))

    def parameter_names_in_turn(self, stitch: int) -> list[frozenset[str]]:
        """Names of the parameters of each leg of a stitch, and of each stitch layer between two legs, as they run.

        Raises:
            UnknownStitch: no such id.
        """
        chosen = self.stitches[self.checked(stitch)]
        turns = []
        for i, leg in enumerate(chosen.legs):
            if i:
                layer = chosen.layers[i - 1]
                turns.append(
                    frozenset(f'stitch_layers.{layer}.{name}' for name, _ in self.layer(layer).named_parameters())
                )
            used = self.anchor(leg.anchor).parameter_names(leg.start, leg.stop)
            turns.append(frozenset(f'anchors.{self._index[leg.anchor]}.model.{name}' for name in used))
        return turns

    def levels_of(self, stitch: int) -> list[Level]:
        """The levels of features that `forward_intermediates` gives while a stitch is active."""
        return self._feature_levels.of(self.stitches[stitch])

    @cached_property
    def _feature_levels(self) -> FeatureLevels:
        return FeatureLevels(self.stitches, {name: self.anchor(name) for name in self._index})

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


def _warn_of_twins(names: Sequence[str]) -> None:
    """Says that the first name which two classes share does not tell them apart."""
    counts = Counter(names)  # there may be 21,841 of them
    twice = next((name for name in names if counts[name] > 1), None)
    if twice is not None:
        places = [i for i, name in enumerate(names) if name == twice][:2]
        _log.warning("classes %d and %d are both named '%s': answers by name do not tell them apart", *places, twice)
