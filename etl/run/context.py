"""One attempt of a run: what it was asked, what it read, staged and counted.

A `Job` never changes. A `Run` belongs to one attempt, with a connection and a temporary folder
of its own; when a server is lost, the next attempt begins with a new one.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import orjson
import polars as pl

from etl import postgres, warehouse
from etl.errors import SyncError
from etl.plumbing import cancellation, log, queries
from etl.result import Change, Outcome, SyncResult, count_names
from etl.run import contract, guards
from etl.run.job import Job, PreviousRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    import dataframely as dy
    import pyarrow as pa

    from etl.options import Options
    from etl.postgres import Call, Connection, Merge
    from etl.settings import Settings
    from etl.warehouse import Batches, Spool

# Assumed of a mart that was never synced.
_UNKNOWN_ROWS = 1_000_000


@dataclass
class Run:
    """One attempt, handed to the sync's `load`."""

    job: Job
    number: int = 0  # of the attempt; 0: none yet, more than 1: a server was lost
    in_ledger: bool = False  # the run is one to be recorded, and the ledger was within reach
    folder: Path = Path()  # for what is spooled
    connection: Connection | None = None  # None: Postgres is away, and the sync can do without
    previous: PreviousRun | None = None
    counts: dict[str, int] = field(default_factory=dict)
    metrics: guards.Metrics = field(init=False)
    rejects: contract.Rejects | None = None
    rejected: Spool = field(init=False)  # keys of what was set aside: these have not left the mart
    columns: frozenset[str] = frozenset()  # of the query, less those that are NULL by its text
    outcomes: list[Outcome] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    warnings: dict[str, str] = field(default_factory=dict)  # by the event they are logged as
    unmapped: dict[str, int] = field(default_factory=dict)  # users by segment without a template
    staged: list[str] = field(default_factory=list)
    checked: bool = False  # the guards have looked
    finishing: bool = False  # the ledger's row may be written and not committed
    committing: bool = False  # a commit was asked for, and its answer has not come

    def __post_init__(self) -> None:
        self.metrics = guards.Metrics(shards=self.job.shard[1], now=self.job.started_at)

    @property
    def options(self) -> Options:
        """How to run."""
        return self.job.options

    @property
    def settings(self) -> Settings:
        """The settings of the run."""
        return self.job.settings

    @property
    def postgres(self) -> Connection:
        """The connection that holds the lock and the open transaction."""
        if self.connection is None:
            raise SyncError(f"{self.job.sync}: not connected to Postgres")
        return self.connection

    @property
    def as_of(self) -> dt.datetime:
        """When the mart was built, by its accepted rows; when they do not say so, now."""
        return self.metrics.built_at or self.job.started_at

    def read(
        self,
        schema: type[dy.Schema],
        reshape: Callable[[pl.DataFrame], pl.DataFrame],
        key: Sequence[str] | None = None,
        *,
        ordered: bool = True,
    ) -> Spool:
        """Read this sync's mart into a spool: the rows that keep the contract, reshaped.

        The others are in `rejects` afterwards, their keys in `rejected`, and the guards' figures in
        `metrics`. The warehouse's file is closed when this returns.

        Args:
            schema: the contract.
            reshape: what to make of a batch. A batch has all rows of its keys, and keys come in
                their order, within a batch and from batch to batch.
            key: columns of the contract's primary key by which rows belong together, in a batch
                as in a shard; all of them unless given.
            ordered: False leaves the rows of a table as they come where no two have the same key,
                for who needs no order: sorting takes a third of reading.

        Raises:
            SyncError: the mart cannot be read; see `warehouse.open_mart`.
        """
        begun, job, key = time.perf_counter(), self.job, key or schema.primary_key()
        keys = schema.create_empty().select(key).to_arrow().schema
        part = job.options.only_user or job.shard
        begin = partial(
            warehouse.open_mart, job.sync, schema, job.settings, part, now=job.started_at
        )
        with (
            warehouse.Writer(self.folder / "rejected", keys, key) as rejected,
            begin(spill=self.folder, key=key, ordered=ordered) as mart,
            contextlib.closing(mart.frames()) as frames,
        ):
            validator = contract.Validator(
                schema,
                self.settings.reject_limit,
                job.started_at,
                key,
                rejected.add_rows,
                unique=not mart.ordered,
            )
            valid = (reshape(validator.valid_rows(frame)) for frame in _cancellable(frames))
            spool = warehouse.write(warehouse.to_batches(valid), self.folder / "mart", key)
        self.rejected = rejected.spool
        self.take_over(mart, validator)
        log.event("mart.read", rows=validator.rows, seconds=_since(begun))
        if self.rejects and self.rejects.total:
            log.warning("rows.rejected", rows=self.rejects.total, **self.rejects.reasons)
        return spool

    def take_over(self, mart: warehouse.Mart, validator: contract.Validator) -> None:
        """Keep what a mart that was read through said of itself: for the result and the guards."""
        rejects = validator.rejects()
        self.columns, self.rejects = mart.source.columns, rejects
        self.counts.update(extracted=validator.rows, rejected=rejects.total, deleted=0)
        # Of the other shards nobody knows which rows will be accepted.
        whole = mart.stats or warehouse.Stats(validator.rows, validator.built_at)
        self.metrics.mart_rows, self.metrics.built_at = whole.rows, whole.built_at
        self.metrics.previous_mart_rows = self.previous.mart_rows if self.previous else None
        self.metrics.extracted, self.metrics.rejected = validator.rows, rejects.total

    def read_target(self, table: str, schema: type[dy.Schema]) -> Call[Spool] | None:
        """Start reading what the target holds, by sql/postgres/<sync>_current.sql.

        Args:
            table: its name, with the schema.
            schema: the contract, for its key.

        Returns:
            The call to wait for. None where reading costs more than it saves: for one shard,
            because the server has to hash every key, and of a target that has many more rows than
            the mart, or none. With `delete_missing` it is read all the same.
        """
        (stats,) = postgres.query(self.postgres, "table_stats", table)
        expected = self.previous.mart_rows if self.previous else _UNKNOWN_ROWS
        pays = stats["bytes"] and stats["rows"] <= 2 * expected and not self.options.shard
        if not (pays or self.options.delete_missing):
            return None

        def spool(batches: pa.RecordBatchReader) -> Spool:
            target = warehouse.write(batches, self.folder / "target", schema.primary_key())
            self.metrics.target_rows = target.rows
            return target

        shard = queries.load("postgres", "create_shard")
        # Another program of the pool may have left one.
        postgres.execute(self.postgres, "DROP TABLE IF EXISTS pg_temp.shard")
        postgres.execute(self.postgres, shard, *self.job.shard)
        return postgres.stream(self.postgres, f"{self.job.sync}_current", spool)

    def start_reading(
        self, start: Callable[[Connection, Path], Call[Spool]], name: str
    ) -> Call[Spool]:
        """Start reading from Postgres into the file `name` of the run's folder."""
        return start(self.postgres, self.folder / name)

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
        with warehouse.missing(target, [rows, self.rejected]) as gone:
            self.copy(table, gone)

    def copy(self, table: str, batches: Batches, rows: int = 0) -> None:
        """COPY Arrow batches to a temporary table that goes with the transaction."""
        self.staged.append(table)
        postgres.copy_to_temp(self.postgres, table, batches, rows)

    def drop_staged(self) -> None:
        """Drop the temporary tables, which a pooler would hand to another client."""
        for table in self.staged:
            postgres.execute(self.postgres, f'DROP TABLE IF EXISTS pg_temp."{table}"')

    def merge(self, what: Merge, *parameters: object) -> dict[str, int]:
        """Run a merge over the staged tables; return its counts. See `postgres.merge`."""
        return postgres.merge(self.postgres, what, *parameters)

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

    def sample_changes(self) -> None:
        """Keep what the merges are about to do to some rows, by sql/postgres/<sync>_changes.sql.

        The sample is fair over inserts, updates and deletes, and over the columns that change.
        Staged before: `staging`, and `gone` where rows are to be deleted.
        """
        if "gone" not in self.staged:
            self.copy("gone", warehouse.Batches(self.rejected.schema, iter(())))
        rows = postgres.query(self.postgres, f"{self.job.sync}_changes", self.options.show)
        self.changes = [
            Change(
                user_id=row["user_id"], change=row["change"], columns=orjson.loads(row["columns"])
            )
            for row in rows
        ]

    def savepoint(self) -> AbstractContextManager[None]:
        """Undo no more than a block where that fails."""
        return postgres.savepoint(self.postgres)

    def count(self, counts: Mapping[str, int]) -> None:
        """Take over what a merge counted: into the result, the guards' figures, or both.

        Raises:
            SyncError: neither knows a count by that name, which would be lost or switch off a
                guard.
        """
        for name, count in counts.items():
            in_result, in_metrics = name in count_names(self.job.sync), hasattr(self.metrics, name)
            if not (in_result or in_metrics):
                raise SyncError(
                    f"{self.job.sync}: the count {name} is not declared; add it to `counts` of the"
                    " sync's line in etl/syncs.py"
                )
            if in_result:
                self.counts[name] = count
            if in_metrics:
                setattr(self.metrics, name, count)

    def check_counts(self) -> None:
        """See that the sync counted all that its result tells.

        Raises:
            SyncError: it did not, and a result without a count looks as if nothing was done.
        """
        due = set(count_names(self.job.sync))
        if "written" in due:  # keys are written, or in a dry run compared
            compared = {"inserted", "updated", "unchanged"}
            due -= {"written"} if self.options.dry_run else compared
        if missing := sorted(due - self.counts.keys()):
            raise SyncError(
                f"{self.job.sync}: nothing was counted as {', '.join(missing)}; let its load() hand"
                " what the merge or the writer returns to run.count()"
            )

    def add_outcomes(self, outcomes: Iterable[Outcome]) -> None:
        """Keep what a dry run says would become of the mails.

        Users are named only where that was asked for, because a scheduler keeps what it is given.
        """
        for outcome in outcomes:
            if not self.options.name_users:
                outcome.pop("users", None)
            self.outcomes.append(outcome)

    def expect_keys(self, keys: int, ttl: int) -> None:
        """Tell the guards how many keys the run would write, and that they last `ttl` seconds."""
        previous, metrics = self.previous, self.metrics
        metrics.keys = keys
        metrics.previous_keys = previous.keys(self.job.shard) if previous else 0
        metrics.rows_without_keys = 0 if keys else metrics.extracted - metrics.rejected
        written_at = previous.began_at if previous else None
        metrics.expiry_note = guards.expiry_note(written_at, ttl, metrics.now)

    def check_guards(self) -> None:
        """Let the guards look at the figures, once; `force` goes past them.

        Raises:
            Refused: a guard fired.
        """
        if self.checked:
            return
        self.checked = True
        if not self.options.force:
            guards.check(self.metrics, self.settings)
        elif fired := guards.fired(self.metrics, self.settings):
            log.warning("guards.forced", reason="; ".join(fired))

    def log_warnings(self) -> None:
        """Log the warnings, and the segments without a template."""
        if self.unmapped:
            log.event("segments.unmapped", users=self.unmapped)
        for name, reason in self.warnings.items():
            log.warning(name, reason=reason)

    def close(self) -> None:
        """End the session; what it did not commit is undone."""
        if self.connection is not None:
            self.connection.close()

    def result(self, status: str, error: str | None = None) -> SyncResult:
        """Return the counts so far, as the caller gets them."""
        result = {
            "sync": self.job.sync,
            "run_id": self.job.run_id,
            "status": status,
            "dry_run": self.options.dry_run,
            **{name: self.counts.get(name) for name in count_names(self.job.sync)},
            "seconds": _since(self.job.begun),
            **({"unmapped_segments": self.unmapped} if self.unmapped else {}),
            **({"warnings": list(self.warnings.values())} if self.warnings else {}),
            **({"outcomes": self.outcomes} if self.outcomes else {}),
            **({"changes": self.changes} if self.options.show else {}),
            **({"error": error} if error else {}),
        }
        return cast("SyncResult", result)


def _cancellable(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    for frame in frames:
        cancellation.check()
        yield frame


def _since(begun: float) -> float:
    return round(time.perf_counter() - begun, 3)
