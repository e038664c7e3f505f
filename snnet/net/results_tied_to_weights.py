"""What is known of a net (costs, accuracies, what stitches have for themselves, latencies) while it is the same net."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..anchors.flops import PartFlops
from ..budget.latency_table import LatencyTable
from ..budget.record import RESULTS, Record
from ..budget.select_by_latency import LatencyTables
from ..errors import ForeignTable
from ..reparam.structure import refresh_anchors
from ..utils.weight_seal import ModuleSeal, WeightSeal
from .count_costs import count_costs
from .hardware import setup_of
from .joined_anchors import JoinedAnchors
from .own_parameters import OwnParameters
from .stitch_statistics import Statistics
from .stitch_tensors import Table, attach, detach, joined

_log = logging.getLogger(__name__)
_ACCURACY: dict[str, Any] = dict.fromkeys(RESULTS)


class ResultsTiedToWeights:
    """What is known of a net and of the weights that it was measured with.

    One seal ties accuracies, statistics, own parameters of stitches, the fingerprint and latency tables to the weights:
    once these change, by whatever means, all of it is dropped, and a message says so. Costs are tied to the modules.

    Attributes:
        records: of each stitch, by id.
        statistics: of the BatchNorms of the stitches.
        own: parameters that belong to single stitches.
        stitch_tables: both of them for each leg of a stitch, by id.
        fingerprint: SHA-256 of the file that holds the weights.
        tables: latency tables.
        seal: of the weights; None while nothing that depends on them is known.
        modules: seal of the modules that the costs were measured on.
        costs_hold: whether the modules are still those.
    """

    def __init__(self, net: JoinedAnchors, records: Iterable[Record]) -> None:
        self.records: list[Record] = _Records(records, net)
        self.statistics: Statistics | None = None
        self.own: OwnParameters | None = None
        self.stitch_tables: dict[int, tuple[Table, ...]] = {}
        self.fingerprint: str | None = None
        self.tables = LatencyTables()
        self.seal: WeightSeal | None = None
        self.modules = ModuleSeal(net)
        self.costs_hold = True

    def verified(self, net: JoinedAnchors, thorough: bool = False) -> ResultsTiedToWeights:
        """Drops what is known of other weights, and returns what is left.

        Args:
            net: whose knowledge this is.
            thorough: see `WeightSeal.holds`.
        """
        if not isinstance(self.records, _Records) or self.records.net() is not net:  # of a copy of the net
            self.records = _Records(self.records, net)
        if self.seal is not None and not self.seal.holds(net, thorough):
            self._drop(net)
        return self

    def tie(self, net: JoinedAnchors) -> None:
        """Ties what is known to the weights as they are now."""
        if self.verified(net).seal is None:
            self.seal = WeightSeal(net)

    def set_records(self, net: JoinedAnchors, records: Iterable[Record]) -> None:
        """Replaces the records."""
        self.verified(net)
        self.records = _Records(records, net)
        if any(_has_accuracy(record) for record in self.records):
            self.tie(net)

    def set_statistics(self, net: JoinedAnchors, statistics: Statistics | None) -> None:
        """Replaces the statistics; accuracies that were measured with others are dropped."""
        self.verified(net)
        if (statistics is None) != (self.statistics is None):
            self.records = _Records((replace(record, **_ACCURACY) for record in self.records), net)
        self.statistics = statistics
        self._attach(net)
        self._show_shares(net)
        if statistics is not None:
            self.tie(net)

    def set_own(self, net: JoinedAnchors, own: OwnParameters | None) -> None:
        """Replaces the parameters of single stitches; accuracies of stitches that change by it are dropped."""
        self.verified(net)
        before, after = ({} if found is None else found.values for found in (self.own, own))
        same = {i for i in before.keys() & after.keys() if _equal(before[i], after[i])}
        changed = (before.keys() | after.keys()) - same
        self.own = own if after else None
        self._attach(net)
        if self.own is not None or self.seal is not None:
            self.seal = WeightSeal(net)  # which covers them; everything else is as it was
        self.records = _Records((replace(r, **_ACCURACY) if r.stitch in changed else r for r in self.records), net)

    def note_saved(self, net: JoinedAnchors, fingerprint: str | None) -> None:
        """Notes that the weights are now those of a file with this SHA-256."""
        self.verified(net).fingerprint = fingerprint
        if fingerprint is not None:
            self.tie(net)

    def add_table(self, net: JoinedAnchors, table: LatencyTable, force: bool) -> None:
        """Adds a latency table (see `StitchableNet.add_table`)."""
        table.check_rows(len(net.stitches))
        if not force and table.weights != self.verified(net).fingerprint:
            raise ForeignTable(
                f'the table (batch {table.batch} on {table.setup}) was measured with other weights than this net has: '
                f'measure again with snnet profile, or force it'
            )
        self.tables.add(table, force)
        if not force:
            self.tie(net)
        self.show_latencies(net)

    def show_latencies(self, net: JoinedAnchors) -> None:
        """Puts latency and memory into the records."""
        if self.tables.tables:
            self.records = _Records(self.tables.applied(self.records, setup_of(net)), net)

    def follow_modules(self, net: JoinedAnchors) -> None:
        """Notices changed modules: anchors find their parameters again, and costs have to be measured again."""
        if not self.modules.holds(net):
            refresh_anchors(net)
            self.modules, self.costs_hold = ModuleSeal(net), False

    def measure_costs(self, net: JoinedAnchors, parts: Mapping[str, PartFlops] | None = None) -> None:
        """Puts FLOPs and parameters into the records (see `snnet.measure_costs`)."""
        costs = count_costs(net, parts)
        pairs = zip(self.verified(net).records, costs, strict=True)
        self.set_records(net, [replace(record, flops=flops, params=params) for record, (flops, params) in pairs])
        self.modules, self.costs_hold = ModuleSeal(net), True

    def moved(self, net: JoinedAnchors, change: Callable[[Tensor], Tensor], converted: bool) -> None:
        """Takes everything along after the net was moved or converted.

        Args:
            net: the net.
            change: what happened to each tensor.
            converted: whether the weights have another type now; what is known of them stays, since only rounding
                differs.
        """
        if self.statistics is not None:
            self.statistics = self.statistics.converted(net, change)
        if self.own is not None:
            self.own = self.own.converted(net, change)
        self._attach(net)
        if self.seal is not None:
            if converted:
                self.seal = WeightSeal(net)
            else:
                self.seal.look_again()
        self.show_latencies(net)

    def _attach(self, net: JoinedAnchors) -> None:
        """Lets modules look up what stitches have for themselves."""
        sources = [source for source in (self.statistics, self.own) if source is not None]
        self.stitch_tables = {}
        for stitch in range(len(net.stitches)) if sources else ():
            found = [tables for source in sources if (tables := source.tables(stitch)) is not None]
            if found:
                self.stitch_tables[stitch] = tuple(joined(legs) for legs in zip(*found, strict=True))
        detach(net)
        attach(module for tables in self.stitch_tables.values() for table in tables for module in table)

    def _show_shares(self, net: JoinedAnchors) -> None:
        """Puts the share of its own BatchNorm statistics into the record of each stitch."""
        shares = {} if self.statistics is None else self.statistics.shares
        self.records = _Records((replace(r, recalibrated=shares.get(r.stitch)) for r in self.records), net)

    def _drop(self, net: JoinedAnchors) -> None:
        lost = []
        if any(_has_accuracy(record) for record in self.records):
            lost.append('accuracies (evaluate again)')
            self.records = _Records((replace(record, **_ACCURACY) for record in self.records), net)
        if self.statistics is not None:
            lost.append('BatchNorm statistics of stitches (recalibrate again)')
            self.statistics = None
            self._show_shares(net)
        if self.own is not None:
            lost.append('parameters of single stitches (adapt again)')
            self.own = None
        self._attach(net)
        if self.tables.drop_unforced():
            lost.append('latency tables (profile again)')
            self.records = _Records((replace(record, latency_ms=None, memory=None) for record in self.records), net)
            self.seal = None
            self.show_latencies(net)
        self.fingerprint = self.seal = None
        if lost:
            _log.warning('the weights or modules have changed, so the net loses its %s', ', '.join(lost))


class _Records(list[Record]):
    """Records of a net, which ties them to its weights when one with accuracies is put in."""

    def __init__(self, records: Iterable[Record], net: JoinedAnchors) -> None:
        super().__init__(records)
        self.net: Callable[[], nn.Module | None] = weakref.ref(net)

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(index, value)
        net: Any = self.net()
        put_in = self[index] if isinstance(index, slice) else [self[index]]
        if net is not None and any(_has_accuracy(record) for record in put_in):
            net.known.tie(net)

    def __reduce__(self) -> Any:
        """A plain list for copies and pickles: the copy of the net wraps it again."""
        return list, (list(self),)


def _has_accuracy(record: Record) -> bool:
    return any(getattr(record, name) is not None for name in _ACCURACY)


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
