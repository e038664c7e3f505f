"""The latency tables of one net, and the choice of a stitch by one of them. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral

from ..errors import ForeignTable, InvalidBudget
from .latency_table import LatencyTable, Setup
from .record import Record
from .select import Chooser, Selection


class LatencyTables:
    """The latency tables of a net, one per setup and batch size.

    Attributes:
        tables: the tables, each with whether it was forced: then it is used whatever it was measured for.
    """

    def __init__(self) -> None:
        self.tables: list[tuple[LatencyTable, bool]] = []
        self._choosers: dict[str | None, tuple[tuple[object, ...], Chooser]] = {}

    def add(self, table: LatencyTable, forced: bool) -> None:
        """Adds a table, in place of an earlier one of the same setup and batch size."""
        self.tables = [(old, how) for old, how in self.tables if old.file_name != table.file_name]
        self.tables.append((table, forced))

    def drop_unforced(self) -> bool:
        """Drops all tables that were not forced, and says whether there were any."""
        before = len(self.tables)
        self.tables = [(table, forced) for table, forced in self.tables if forced]
        return len(self.tables) < before

    def holding(self, setup: Setup) -> list[LatencyTable]:
        """The tables that hold in a setup, from small to large batches."""
        held = [table for table, forced in self.tables if forced or table.setup == setup]
        return sorted(held, key=lambda table: (table.batch, table.setup != setup))  # forced ones last

    def applied(self, records: list[Record], setup: Setup) -> list[Record]:
        """Records with latency and memory for one image, or for the smallest batch that was measured."""
        held = self.holding(setup)
        table = held[0] if held else LatencyTable(setup, 1, None, {})
        return table.applied(records)

    def for_batch(self, batch: int, setup: Setup) -> LatencyTable:
        """The table of a batch size in a setup, or else that of the next larger batch.

        Raises:
            InvalidBudget: the batch is not a positive integer.
            ForeignTable: there is none; the message says which there are, and what differs.
        """
        if isinstance(batch, bool) or not isinstance(batch, Integral) or batch < 1:
            raise InvalidBudget(f'a batch is a number of images, at least 1, not {batch!r}')
        for table in self.holding(setup):
            if table.batch >= batch:
                return table
        what = f'no latency table holds for batch {batch} on {setup}'
        if not self.tables:
            raise ForeignTable(f'{what}: there is none at all (snnet profile FOLDER makes one)')
        reasons = [
            f'batch {table.batch} has {table.setup.differences(setup) or "too few images"}' for table, _ in self.tables
        ]
        raise ForeignTable(f'{what}: of those at hand, {"; ".join(reasons)} (snnet profile FOLDER makes one)')

    def choose(self, records: Sequence[Record], table: LatencyTable | None, **limits: float | None) -> Selection:
        """The best record within limits, with the latencies of a table (see `select`)."""
        selection = self._chooser(records, table).choose(**limits)
        return selection if table is None else replace(selection, source=str(table))

    def _chooser(self, records: Sequence[Record], table: LatencyTable | None) -> Chooser:
        """The chooser of a table, made again where the records have changed since."""
        name = None if table is None else table.file_name
        known, chooser = self._choosers.get(name, ((), Chooser(())))
        if known != (table, *records):
            known = (table, *records)
            chooser = Chooser(records if table is None else table.applied(list(records)))
            self._choosers[name] = known, chooser
        return chooser
