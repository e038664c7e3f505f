"""StitchableNet: anchors, stitch layers, and the stitches that run through them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..anchors.align_normalization import align_normalization
from ..anchors.anchor import Anchor
from ..budget.frontier import frontier
from ..budget.latency_table import LatencyTable
from ..budget.record import Record
from ..budget.select import Selection
from ..errors import UnknownStitch
from ..saving.hub import locate
from ..stitching.check_anchors import check_anchors
from ..stitching.stitch import Leg, Stitch
from ..stitching.stitch_layer import StitchLayer
from .batchnorm import Statistics
from .build_layers import build_layers
from .costs import measure_costs
from .embeddings import make_projections
from .extract import ExtractedStitch, extract_stitch
from .hardware import setup_of
from .net_as_timm import NetAsTimm
from .own_parameters import OwnParameters
from .own_state import carry_own_parameters
from .pretrained import load_net, push_net, save_net
from .results_tied_to_weights import ResultsTiedToWeights
from .statistics_state import carry_statistics
from .stitch_tensors import Table, computing_with

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger(__name__)
_using: ContextVar[Mapping[int, int]] = ContextVar('stitches in use', default=MappingProxyType({}))
"""The stitch of each net inside its `using`, by the net's identity: a context variable, so that threads differ."""


class StitchableNet(NetAsTimm):
    """One network that is a whole family: runs any of its stitches on demand.

    It takes built anchors and builds only the stitch layers. Parameters are named `anchors.{i}.model.*`, as in the
    wrapped models, and `stitch_layers.{l}.weight` and `.bias`.

    What is known of the stitches (accuracies, BatchNorm statistics, parameters of their own, latency tables) belongs to
    the weights it was made with: it is dropped, with a warning, once they change. Costs are measured again where
    modules change.

    Args:
        anchors: one or more, with distinct names, one class count and one image size.
        stitches: the sub-networks; a stitch's id is its index.

    Attributes:
        stitches: the sub-networks, by id.
        known: what is known of them; `records` shows it.
        preprocessing: how images are prepared for evaluation where that differs from the first anchor's own way, in
            timm's words ('crop_pct', 'interpolation'); saved with the net.

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
        self._class_names = anchors[0].class_names if len({anchor.class_names for anchor in anchors}) == 1 else None
        records = [
            Record(i, str(stitch), anchor=stitch.legs == (Leg(stitch.legs[0].anchor),))
            for i, stitch in enumerate(self.stitches)
        ]
        self.known = ResultsTiedToWeights(self, records)
        self.loaded_statistics: dict[str, Tensor] | None = None
        carry_statistics(self)
        self.loaded_own: dict[str, Tensor] | None = None
        carry_own_parameters(self)

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
        """Makes a stitch the active one of this thread or task within a `with` block, whatever `set_stitch` says.

        Other threads do not see it, also those that are started within the block: a server with a pool of threads
        calls `net(images, stitch=...)` in each of them instead.
        """
        token = _using.set({**_using.get(), id(self): self.checked(stitch)})
        try:
            yield self
        finally:
            _using.reset(token)

    def extract(self, stitch: int, *, intermediates: bool = False) -> ExtractedStitch:
        """Cuts one stitch out: a plain module with copies of only its own parameters and the same output.

        Args:
            stitch: id of the stitch.
            intermediates: take along the stitch layers that `forward_intermediates` needs for the features of fronts.

        Raises:
            UnknownStitch: no such id.
        """
        self.known.verified(self).follow_modules(self)
        return extract_stitch(self, self.checked(stitch), intermediates)

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

    # What is known of the stitches.

    @property
    def records(self) -> list[Record]:
        """What is known of each stitch, by id; an entry may be replaced."""
        return self.known.verified(self).records

    @records.setter
    def records(self, records: Sequence[Record]) -> None:
        self.known.set_records(self, records)

    @property
    def statistics(self) -> Statistics | None:
        """BatchNorm statistics of the stitches; None until `snnet.recalibrate`, and again once weights change."""
        return self.known.verified(self).statistics

    def set_statistics(self, statistics: Statistics | None) -> None:
        """Lets every recalibrated stitch run with its own statistics in eval mode; None takes them away."""
        self.known.set_statistics(self, statistics)

    @property
    def own_parameters(self) -> OwnParameters | None:
        """Parameters that belong to single stitches; None until `snnet.adapt`, and again once weights change."""
        return self.known.verified(self).own

    def set_own_parameters(self, own: OwnParameters | None) -> None:
        """Lets stitches run with parameters of their own in eval mode; None takes them away. Anchors stay the same."""
        self.known.set_own(self, own)

    @property
    def sealed_tensors(self) -> dict[str, Tensor]:
        """Tensors beside parameters and buffers that outputs depend on, for the seal of the weights."""
        own = self.known.own
        return {} if own is None else own.tensors()

    def tables(self, stitch: int) -> tuple[Table, ...] | None:
        """What a stitch has for itself in each leg, statistics and parameters; None where it runs with the net's."""
        known = self.known
        if known.stitch_tables and (known.seal is None or not known.seal.counters_hold()):  # at every call: a glance
            known = known.verified(self)
        return known.stitch_tables.get(stitch)

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the file that the weights were loaded from or saved to; None where they have changed since."""
        return self.known.verified(self).fingerprint

    @property
    def latency_tables(self) -> tuple[LatencyTable, ...]:
        """The latency tables at hand, whether or not they hold where the net runs now."""
        return tuple(table for table, _ in self.known.verified(self).tables.tables)

    def add_table(self, table: LatencyTable, force: bool = False) -> None:
        """Adds a latency table, in place of an earlier one of the same setup and batch size.

        Args:
            table: the table.
            force: use it whatever weights, device or type it was measured with.

        Raises:
            ForeignTable: it was measured with other weights or for another net.
        """
        self.known.add_table(self, table, force)

    def table_for(self, batch: int = 1) -> LatencyTable:
        """The latency table for a batch where the net runs now: of that batch size, or of the next larger one.

        Raises:
            InvalidBudget: the batch is not a positive integer.
            ForeignTable: there is none; the message says which there are, and what differs.
        """
        return self.known.verified(self).tables.for_batch(batch, setup_of(self))

    def choose(
        self,
        flops: float | None = None,
        *,
        params: float | None = None,
        latency_ms: float | None = None,
        memory: float | None = None,
        batch: int = 1,
    ) -> Selection:
        """The best stitch within all given limits; activates nothing, so it is safe from many threads at once.

        The best is the most accurate where stitches within the limits have been evaluated, otherwise the most
        expensive one that fits. Ties go to the cheaper, then to the lower id.

        Args:
            flops: most multiply-adds per image.
            params: most parameters that take part.
            latency_ms: most milliseconds per batch (median), by the table for this device, type and batch size.
            memory: most bytes that the stitch needs by itself with a batch, by the same table.
            batch: images per call; the table of the next larger batch is taken where this one was not measured.

        Raises:
            InvalidBudget: no limit, or one that is not a positive finite number.
            BudgetInfeasible: even the smallest stitch is more expensive; `smallest` holds what is feasible.
            ForeignTable: no latency table holds here.
        """
        self._follow_costs()
        tables = self.known.tables  # of the weights that `_follow_costs` has just looked at
        table = None if latency_ms is None and memory is None else tables.for_batch(batch, setup_of(self))
        limits = {'flops': flops, 'params': params, 'latency_ms': latency_ms, 'memory': memory}
        return tables.choose(self.known.records, table, **limits)

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

        Arguments and errors are those of `choose`; where accuracy could not decide, a warning says so, because that
        loses up to half a point.
        """
        selection = self.choose(flops, params=params, latency_ms=latency_ms, memory=memory, batch=batch)
        selection.warn()
        _log.info('%s', selection)
        self.set_stitch(selection.record.stitch)
        return selection.record.stitch

    def frontier(self, cost: str = 'flops') -> list[Record]:
        """The evaluated stitches that no other beats on cost and accuracy, from cheap to expensive."""
        self._follow_costs()
        return frontier(self.known.records, cost)

    # Saving and loading, in the shape that users of Hugging Face know.

    def save_pretrained(self, folder: str | Path, *, license: str | None = None) -> None:
        """Writes config.json (anchors, stitches, records), model.safetensors and, if any, what stitches have for
        themselves: statistics.safetensors and own_parameters.safetensors.

        Each file is written whole or not at all. README.md becomes a model card; of one that is there already, only
        the section that snnet wrote is replaced.

        Args:
            folder: made where it is missing; other files in it are left alone.
            license: of the weights, for the card; 'unknown' by default.

        Raises:
            SnnetError: an anchor that could not be built again as it is now, or weights that are not finite; nothing
                is written then.
        """
        save_net(self, Path(folder), license)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, num_classes: int | None = None, revision: str | None = None,
        cache_dir: str | Path | None = None, token: str | bool | None = None,
        local_files_only: bool = False, force_download: bool = False,
    ) -> Self:  # fmt: skip
        """Builds the net that `save_pretrained` or `push_to_hub` wrote, in eval mode.

        Args:
            folder: a folder, or OWNER/NAME or OWNER/NAME@REVISION on the Hub.
            num_classes: width of the logits; another one than was saved gives every anchor a new classifier with
                random weights, and keeps everything else.
            revision, cache_dir, token, local_files_only, force_download: see `snnet.saving.hub.locate`.

        Raises:
            SnnetError: the folder holds no net, one of a newer version, or one of a family not known here.
            NoWeights: the weights or statistics are missing, damaged or do not belong to the config.
        """
        found = locate(
            folder, revision=revision, cache_dir=cache_dir, token=token,
            local_files_only=local_files_only, force_download=force_download,
        )  # fmt: skip
        return load_net(cls, found, num_classes)

    def push_to_hub(
        self, repo_id: str, *, commit_message: str = 'A stitchable network', private: bool | None = None,
        token: str | bool | None = None, revision: str | None = None, create_pr: bool = False,
        license: str | None = None,
    ) -> str:  # fmt: skip
        """Uploads what `save_pretrained` writes, and the latency tables; makes the repository where it is missing.

        A model card that is there already is treated as `save_pretrained` does.

        Args:
            repo_id: OWNER/NAME.
            commit_message: of the commit.
            private: whether a new repository is private; by default what the Hub has as default.
            token: of the Hub; by default the one that `hf auth login` or HF_TOKEN gave.
            revision: branch, made where it is missing; the main one by default.
            create_pr: propose the commit as a pull request instead.
            license: of the weights, for the card.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            SnnetError: a net that cannot be saved, or the Hub refuses or cannot be reached.
        """
        return push_net(
            self, repo_id, license, commit_message=commit_message, private=private, token=token,
            revision=revision, create_pr=create_pr,
        )  # fmt: skip

    # What torch's modules let a subclass follow.

    def train(self, mode: bool = True) -> Self:
        """Train or eval mode; train mode takes away what stitches have for themselves, because weights will change."""
        if mode and self.known.statistics is not None:
            self.set_statistics(None)
            _log.warning('train mode: the stitches lose their BatchNorm statistics; recalibrate after training')
        if mode and self.known.own is not None:
            self.set_own_parameters(None)
            _log.warning('train mode: the stitches lose their own parameters; adapt after training')
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Takes along what is known where the net is moved or converted (torch's hook for `to`, `half`, ...)."""
        self.known.verified(self)
        dtype = next(self.parameters()).dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.known.moved(self, fn, converted=next(self.parameters()).dtype != dtype)
        return self

    def _follow_costs(self) -> None:
        """Measures the costs again where modules were replaced since."""
        self.known.verified(self).follow_modules(self)
        if not self.known.costs_hold:
            measure_costs(self)
