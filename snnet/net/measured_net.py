"""A net that remembers what was measured of its stitches, for as long as it is the same net."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..anchors.anchor import Anchor
from ..budget.frontier import frontier
from ..budget.latency_table import LatencyTable
from ..budget.record import Record
from ..budget.select import Selection
from ..stitching.stitch import Leg, Stitch
from .hardware import setup_of
from .joined_anchors import JoinedAnchors
from .own_parameters import OwnParameters
from .own_state import OWN, own_to_state, set_loaded_own
from .results_tied_to_weights import ResultsTiedToWeights
from .statistics_state import STATISTICS, set_loaded_statistics, statistics_to_state
from .stitch_statistics import Statistics
from .stitch_tensors import Table

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger(__name__)


class MeasuredNet(JoinedAnchors):
    """Joined anchors with what is known of their stitches, and the choice of a stitch by it; see `StitchableNet`.

    What is known (accuracies, BatchNorm statistics, parameters of single stitches, latency tables) belongs to the
    weights it was made with: it is dropped, with a warning, once they change. Costs are measured again where modules
    change. The state dict holds what stitches have for themselves.

    Args:
        anchors, stitches: as for `JoinedAnchors`.

    Attributes:
        known: what is known of the stitches; `records` shows it.
    """

    def __init__(self, anchors: Sequence[Anchor], stitches: Sequence[Stitch]) -> None:
        super().__init__(anchors, stitches)
        records = [
            Record(i, str(stitch), anchor=stitch.legs == (Leg(stitch.legs[0].anchor),))
            for i, stitch in enumerate(self.stitches)
        ]
        self.known = ResultsTiedToWeights(self, records)
        self._loaded: dict[str, dict[str, Tensor]] = {}
        self.register_state_dict_post_hook(_put_extras)  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.register_load_state_dict_pre_hook(_take_extras)  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.register_load_state_dict_post_hook(_set_extras)  # type: ignore[no-untyped-call]  # torch does not annotate it

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
        """All latency tables of the net, whether or not they hold where it runs now."""
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
            self.known.measure_costs(self)


def _put_extras(net: MeasuredNet, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """Adds what stitches have for themselves to a state dict, behind all weights."""
    known = net.known.verified(net)
    extras = {**statistics_to_state(known.statistics), **own_to_state(known.own)}
    state.update({f'{prefix}{name}': tensor for name, tensor in extras.items()})


def _take_extras(net: MeasuredNet, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Takes it out of the state dict again before the weights are loaded."""
    for kind in (STATISTICS, OWN):
        begin = f'{prefix}{kind}'
        names = [name for name in state if name.startswith(begin)]
        net._loaded[kind] = {name.removeprefix(begin): state.pop(name) for name in names}


def _set_extras(net: MeasuredNet, incompatible: Any) -> None:
    """After the weights were loaded: the stitches have what came with them, or nothing."""
    found, net._loaded = net._loaded, {}
    set_loaded_statistics(net, net.known, found.get(STATISTICS, {}))
    set_loaded_own(net, net.known, found.get(OWN, {}))
