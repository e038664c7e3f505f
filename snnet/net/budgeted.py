"""What a net knows of its costs, and the choice of a stitch by them."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral

from torch import nn

from ..budget.frontier import Record, frontier
from ..budget.latency_table import LatencyTable
from ..budget.select import Chooser, Selection
from ..errors import ForeignTable, InvalidBudget
from .batchnorm import Seal
from .hardware import setup_of


class Budgeted(nn.Module):
    """The side of a StitchableNet that knows its costs: records, tables of latency and memory, and the choice by them.

    Attributes:
        records: what is known of each stitch, by id (`snnet.measure_costs` fills in the costs, evaluation the accuracy,
            a table the latency).
    """

    records: list[Record]

    def __init__(self) -> None:
        super().__init__()
        self._tables: list[tuple[LatencyTable, bool]] = []
        self._choosers: dict[str | None, tuple[tuple[object, ...], Chooser]] = {}
        self._saved: tuple[str, Seal] | None = None

    @property
    def latency_tables(self) -> tuple[LatencyTable, ...]:
        """The tables at hand, whether or not they hold where the net runs now."""
        return tuple(table for table, _ in self._tables)

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the file that the weights were loaded from or saved to; None where they have changed since."""
        return self._saved[0] if self._saved is not None and self._saved[1].intact() else None

    def note_saved(self, fingerprint: str | None) -> None:
        """Notes that the weights are now those of a file with this SHA-256."""
        self._saved = None if fingerprint is None else (fingerprint, Seal(self.parameters()))

    def add_table(self, table: LatencyTable, force: bool = False) -> None:
        """Adds a table of latencies, in place of an earlier one of the same setup and batch size.

        Args:
            table: the table.
            force: believe it whatever weights, device or type it was made for.

        Raises:
            ForeignTable: it was made with other weights or for another net.
        """
        strange = sorted(set(table.rows) - set(range(len(self.records))))
        if strange:
            raise ForeignTable(f'the table tells of stitch {strange[0]}, but this net has {len(self.records)}')
        if not force and table.weights != self.fingerprint:
            raise ForeignTable(
                f'the table (batch {table.batch} on {table.setup}) was measured with other weights than this net has: '
                f'measure anew with snnet profile, or force it'
            )
        self._tables = [(old, forced) for old, forced in self._tables if old.file_name != table.file_name]
        self._tables.append((table, force))
        self.show_latencies()

    def show_latencies(self) -> None:
        """Puts latency and memory into the records: of one image, or of the smallest batch that was measured."""
        if self._tables:
            held = self._holding()
            table = held[0] if held else LatencyTable(setup_of(self), 1, None, {})
            self.records = table.applied(self.records)

    def table_for(self, batch: int = 1) -> LatencyTable:
        """The table that holds for a batch where the net runs now: of that batch size, or else of the next larger one.

        Raises:
            InvalidBudget: the batch is no positive integer.
            ForeignTable: there is none; the message says which there are, and what differs.
        """
        if isinstance(batch, bool) or not isinstance(batch, Integral) or batch < 1:
            raise InvalidBudget(f'a batch is a number of images, at least 1, not {batch!r}')
        for table in self._holding():
            if table.batch >= batch:
                return table
        setup = setup_of(self)
        what = f'no table of latencies holds for batch {batch} on {setup}'
        if not self._tables:
            raise ForeignTable(f'{what}: there is none at all (snnet profile FOLDER makes one)')
        reasons = [
            f'batch {table.batch} has {table.setup.differences(setup) or "too few images"}' for table, _ in self._tables
        ]
        raise ForeignTable(f'{what}: of those at hand, {"; ".join(reasons)} (snnet profile FOLDER makes one)')

    def choose(
        self,
        flops: float | None = None,
        *,
        params: float | None = None,
        latency_ms: float | None = None,
        memory: float | None = None,
        batch: int = 1,
    ) -> Selection:
        """The best stitch within all given limits; changes no state, so it is safe from many threads at once.

        The best is the most accurate where stitches within the limits have been evaluated, otherwise the dearest that
        fits. Ties go to the cheaper, then to the lower id.

        Args:
            flops: most multiply-adds an image.
            params: most parameters that take part.
            latency_ms: most milliseconds a batch (median), by the table for this device, type and batch size.
            memory: most bytes that the stitch needs by itself with a batch, by the same table.
            batch: images a call; the table of the next larger batch is taken where this one was not measured.

        Raises:
            InvalidBudget: no limit, or one that is no positive finite number.
            BudgetInfeasible: even the smallest stitch is dearer; `smallest` holds what is feasible.
            ForeignTable: no table of latencies holds here.
        """
        table = None if latency_ms is None and memory is None else self.table_for(batch)
        selection = self._chooser_with(table).choose(flops=flops, params=params, latency_ms=latency_ms, memory=memory)
        return selection if table is None else replace(selection, source=str(table))

    def frontier(self, cost: str = 'flops') -> list[Record]:
        """The evaluated stitches that no other beats on cost and accuracy, from cheap to dear."""
        return frontier(self.records, cost)

    def _holding(self) -> list[LatencyTable]:
        """The tables that hold where the net runs now, from small to large batches."""
        setup = setup_of(self)
        held = [table for table, forced in self._tables if forced or table.setup == setup]
        return sorted(held, key=lambda table: (table.batch, table.setup != setup))  # a forced one where there is no own

    def _chooser_with(self, table: LatencyTable | None) -> Chooser:
        """The chooser of a table, made anew where the records have changed since."""
        name = None if table is None else table.file_name
        known, chooser = self._choosers.get(name, ((), Chooser(())))
        if known != (table, *self.records):
            known = (table, *self.records)
            chooser = Chooser(self.records if table is None else table.applied(self.records))
            self._choosers[name] = known, chooser
        return chooser
