"""What a sync's `load` is handed: read the mart and the target, stage, merge, count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import dataframely as dy
import polars as pl
import pyarrow as pa

from etl import postgres, warehouse
from etl.errors import SyncError
from etl.plumbing import log, queries
from etl.postgres import Call, Connection, Merge
from etl.run import guards
from etl.run.facts import Facts
from etl.run.reading import MartReading, read_mart
from etl.warehouse import Batches, Spool

_T = TypeVar("_T")

# Assumed of a mart that was never synced.
_UNKNOWN_ROWS = 1_000_000


@dataclass
class Run(Facts):
    """One attempt, as a sync's `load` sees it: what it may ask, and its verbs."""

    def read(
        self,
        schema: type[dy.Schema],
        reshape: Callable[[pl.DataFrame], pl.DataFrame],
        key: Sequence[str] | None = None,
        *,
        ordered: bool = True,
        stage_as: str | None = None,
    ) -> Spool:
        """Read this sync's mart into a spool: the rows that keep the contract, reshaped.

        Afterwards `mart` has what was rejected, and the warehouse's file is closed; a slow server
        does not keep it open for longer.

        Args:
            schema: the contract.
            reshape: what to make of a batch, which has all rows of its keys.
            key: columns of the contract's primary key by which rows belong together, in a batch
                as in a shard; all of them unless given.
            ordered: keys come in their order, within a batch and from batch to batch. False where
                nobody needs that: sorting takes a third of reading. See `warehouse.open_mart`.
            stage_as: COPY all of them to this temporary table while they are read.

        Raises:
            SyncError: the mart cannot be read, or Postgres did not take what was read.
        """
        key = key or schema.primary_key()
        copies: list[Call[int]] = []

        def copy(batches: Batches) -> None:
            self.staged.append(str(stage_as))
            copies.append(postgres.start_copy(self.session, str(stage_as), batches))

        def keep(rows: Iterator[pl.DataFrame]) -> Spool:
            # No map(): an error of `reshape` is told by this place.
            batches = warehouse.to_batches(reshape(each) for each in rows)
            return warehouse.write(batches, self.folder / "mart", key, copy if stage_as else None)

        mart = read_mart(self.job, self.folder, schema, key, keep, ordered=ordered)
        for under_way in copies:
            postgres.finish_copy(self.session, str(stage_as), under_way, mart.accepted.rows)
        return self.take(mart)

    def take(self, mart: MartReading) -> Spool:
        """Have a mart that was read, and return its accepted rows."""
        self._reading = mart
        self.tally.add_reading(mart, self.previous)
        return mart.accepted

    def is_new(self, table: str) -> bool:
        """Whether nothing was ever in a table of Postgres."""
        (stats,) = postgres.query(self.session, "table_stats", table)
        return not stats["bytes"]

    def read_target(self, table: str, schema: type[dy.Schema]) -> Call[Spool] | None:
        """Start reading what the target holds, by sql/postgres/<sync>_current.sql.

        Notes in `into_nothing` whether the target is new, by which `insert_all` goes.

        Args:
            table: its name, with the schema.
            schema: the contract, for its key.

        Returns:
            The call to wait for. None where reading costs more than it saves: for one shard,
            because the server has to hash every key, and of a target that has many more rows than
            the mart, or none. With `delete_missing` it is read all the same.
        """
        (stats,) = postgres.query(self.session, "table_stats", table)
        self.into_nothing = not stats["bytes"]
        expected = self.previous.mart_rows if self.previous else _UNKNOWN_ROWS
        pays = stats["bytes"] and stats["rows"] <= 2 * expected and not self.options.shard
        if not (pays or self.options.delete_missing):
            return None

        def spool(batches: pa.RecordBatchReader) -> Spool:
            target = warehouse.write(batches, self.folder / "target", schema.primary_key())
            self.tally.tell_guards(target_rows=target.rows)
            return target

        shard = queries.load("postgres", "create_shard")
        # Another program of the pool may have left one.
        postgres.execute(self.session, "DROP TABLE IF EXISTS pg_temp.shard")
        postgres.execute(self.session, shard, *self.job.shard)
        return postgres.stream(self.session, f"{self.job.sync}_current", spool)

    def read_and_stage(
        self,
        staging: str,
        schema: type[dy.Schema],
        reshape: Callable[[pl.DataFrame], pl.DataFrame],
        table: str,
    ) -> tuple[Spool, Spool | None]:
        """Read the mart and what its target holds, and COPY what differs to a temporary table.

        With `delete_missing` the keys of those who left the mart are copied to `gone` as well.

        Args:
            staging: the temporary table.
            schema: the contract.
            reshape: what to make of a batch; see `read`.
            table: the target; see `read_target`.

        Returns:
            The accepted rows; what the target holds, or None where it was not read and all rows
            were staged.
        """
        reading = self.read_target(table, schema)  # while the mart is read
        if reading is None:  # in order, because the target takes them in the order they come in
            return self.read(schema, reshape, stage_as=staging), None
        rows = self.read(schema, reshape, ordered=False)  # what differs is sorted later
        target = reading.result()
        self.stage(staging, rows, target)
        if self.options.delete_missing:
            self.stage_missing("gone", target, rows)
        return rows, target

    def start_reading(self, start: Callable[[Connection, Path], Call[_T]], name: str) -> Call[_T]:
        """Start reading from Postgres into the file `name` of the run's folder."""
        return start(self.session, self.folder / name)

    def stage(self, table: str, rows: Spool, target: Spool | None) -> None:
        """COPY rows to a temporary table: where a target is given, only those it does not hold."""
        if target is None:
            self.copy(table, rows.batches(), rows.rows)
        else:
            if absent := [name for name in rows.schema.names if name not in target.schema.names]:
                raise SyncError(
                    f"sql/postgres/{self.job.sync}_current.sql does not select"
                    f" {', '.join(absent)}, of what transform returns; add it there"
                )
            with warehouse.differing(rows, target) as changed:
                self.copy(table, changed)

    def stage_missing(self, table: str, target: Spool, rows: Spool) -> None:
        """COPY the keys that the target holds and the mart, rejected rows included, does not."""
        with warehouse.missing(target, [rows, self.mart.rejected]) as gone:
            self.copy(table, gone)

    def copy(self, table: str, batches: Batches, rows: int = 0) -> None:
        """COPY Arrow batches to a temporary table that goes with the transaction."""
        self.staged.append(table)
        postgres.copy_to_temp(self.session, table, batches, rows)

    def merge(self, what: Merge, *parameters: object) -> dict[str, int]:
        """Run a merge over the staged tables; return its counts. See `postgres.merge`."""
        return postgres.merge(self.session, what, *parameters)

    def merge_new(self, what: Merge) -> dict[str, int]:
        """Merge with `$1` true, for a plain INSERT of what is new: half the cost of ON CONFLICT.

        With false, where another session has just added some of it.
        """
        try:
            with self.savepoint():
                return self.merge(what, True)
        except SyncError as error:
            if error.sqlstate != postgres.UNIQUE_VIOLATION:
                raise
        return self.merge(what, False)

    def insert_all(self, what: Merge, name: str) -> int | None:
        """Insert all that was read and staged by sql/postgres/<name>.sql, where that can be done.

        Returns:
            How many rows Postgres says it wrote. None: the target has, or once had, rows, or
            another session has just added one of these; nothing was done.
        """
        if not self.into_nothing:
            return None
        try:
            with self.savepoint():
                return postgres.insert(self.session, what, name, self.mart.accepted.rows)
        except SyncError as error:
            if error.sqlstate != postgres.UNIQUE_VIOLATION:
                raise
        return None

    def sample_changes(self) -> None:
        """Keep what the merges are about to do to some rows, by sql/postgres/<sync>_changes.sql.

        The sample is fair over inserts, updates and deletes, and over the columns that change.
        Staged before: `staging`, and `gone` where rows are to be deleted.
        """
        if "gone" not in self.staged:
            self.copy("gone", warehouse.Batches(self.mart.rejected.schema, iter(())))
        rows = postgres.query(self.session, f"{self.job.sync}_changes", self.options.show)
        self.tally.add_changes(rows)

    def savepoint(self) -> AbstractContextManager[None]:
        """Undo no more than a block where that fails."""
        return postgres.savepoint(self.session)

    def count(self, counts: Mapping[str, int]) -> None:
        """Take over what a merge counted; see `Tally.count`."""
        self.tally.count(counts)

    def check_guards(self) -> None:
        """Let the guards look at the figures, once; `force` goes past them.

        Raises:
            Refused: a guard fired.
        """
        if self._guarded:
            return
        self._guarded = True
        if not self.options.force:
            guards.check(self.tally.metrics, self.settings)
        elif fired := guards.fired(self.tally.metrics, self.settings):
            log.warning("guards.forced", reason="; ".join(fired))
