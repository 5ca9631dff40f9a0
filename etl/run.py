"""One run of a sync: its lock, its ledger row, its result, and how it ends.

`execute` is what every `sync()` calls. The connection that holds the lock is the one that
loads, so that a run which lost its lock cannot commit.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import polars as pl

from etl import contract, guards, ledger, log, postgres, warehouse
from etl.errors import Refused, Stopped, SyncError
from etl.options import COMMON, COUNTS, EXTRA, Options, SyncResult
from etl.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import dataframely as dy

    from etl.postgres import Connection


@dataclass
class Run:
    """The state of one run, handed to the sync's `load`."""

    sync: str
    settings: Settings
    options: Options
    run_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    connection: Connection | None = None
    started: float = field(default_factory=time.perf_counter)

    # of the shard at hand
    shard: tuple[int, int] = (0, 1)
    shard_started: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))
    figures: guards.Figures = field(default_factory=guards.Figures)
    counts: dict[str, int] = field(default_factory=dict)
    rejects: contract.Rejects | None = None
    mart_columns: frozenset[str] = frozenset()

    # of all shards that are done
    totals: dict[str, int] = field(default_factory=dict)

    def read(self, schema: type[dy.Schema]) -> pl.DataFrame:
        """Fetch this sync's mart and return the rows that keep the contract.

        The others are kept in `rejects`; what the guards want to know goes to `figures`.
        """
        begun = time.perf_counter()
        mart = warehouse.read(self.sync, schema, self.settings, self.shard)
        log.event("mart.read", rows=mart.table.num_rows, seconds=_since(begun))
        rows, self.rejects = contract.accept(schema, mart.table, self.settings.reject_limit)
        if self.rejects.total:
            log.warning("rows.rejected", rows=self.rejects.total, **self.rejects.reasons)
        self.counts.update(extracted=mart.table.num_rows, rejected=self.rejects.total, deleted=0)
        self.figures.extracted, self.figures.rejected = mart.table.num_rows, self.rejects.total
        self.figures.mart_rows, self.figures.built_at = mart.rows, mart.built_at
        self.mart_columns = mart.columns
        return rows

    @property
    def postgres(self) -> Connection:
        """The connection that holds the lock and the open transaction."""
        if self.connection is None:
            raise SyncError(f"{self.sync}: not connected to Postgres")
        return self.connection

    @property
    def as_of(self) -> dt.datetime:
        """When the mart was built; when it does not say so, now."""
        return self.figures.built_at or self.shard_started

    def count(self, counts: Mapping[str, int]) -> None:
        """Take over what a merge counted: into the result, the guards' figures, or both."""
        for name, count in counts.items():
            if name in COUNTS:
                self.counts[name] = count
            if hasattr(self.figures, name):
                setattr(self.figures, name, count)

    def rejected_users(self) -> pl.DataFrame:
        """user_id str: those whose rows were set aside; they have not left the mart."""
        users: Any = self.rejects.keys if self.rejects else []
        return pl.DataFrame({"user_id": users}, schema={"user_id": pl.String}).filter(
            contract.no_nul(pl.col("user_id"))
        )

    def judge(self) -> None:
        """Let the guards look at the figures; `--force` goes past them."""
        try:
            guards.judge(self.figures, self.settings)
        except Refused as refusal:
            if not self.options.force:
                raise
            log.warning("guards.forced", reason=str(refusal))

    def result(self, status: str, error: str | None = None) -> SyncResult:
        """The counts so far, as the caller gets them."""
        known = {**self.totals}
        for name, count in self.counts.items():
            known[name] = known.get(name, 0) + count
        result = {
            "sync": self.sync,
            "run_id": self.run_id,
            "status": status,
            "dry_run": self.options.dry_run,
            **{name: known.get(name) for name in (*COMMON, *EXTRA.get(self.sync, ()))},
            "seconds": _since(self.started),
            **({"error": error} if error else {}),
        }
        return cast("SyncResult", result)


def execute(
    sync: str,
    load: Callable[[Run], None],
    options: Options,
    *,
    needs_postgres: bool = True,
) -> SyncResult:
    """Take the lock, load every shard asked for, commit each with its ledger row.

    Args:
        sync: its name: the query, the lock and the ledger go by it.
        load: fetches, reshapes and writes, but does not commit.
        options: how to run.
        needs_postgres: False does the work without lock and ledger where Postgres is away.

    Raises:
        SyncError: the run failed (`Refused`: a guard stopped it); it has `.result`.
    """
    run = Run(sync, Settings.from_environment(), options)
    with log.context(sync=sync, run_id=run.run_id):
        log.event("sync.started", dry_run=options.dry_run, forced=options.force)
        try:
            _open(run, needs_postgres)
            for shard in options.walk:
                _start(run, shard)
                load(run)
                run.judge()
                _finish(run)
        except Exception as error:
            failure = _explained(error, run.settings)
            _fail(run, failure.status, str(failure))
            failure.result = run.result(failure.status, str(failure))
            raise failure from error
        except BaseException as stop:
            reason = f"cancelled by {stop or type(stop).__name__}"
            _fail(run, "cancelled", reason)
            if isinstance(stop, Stopped):
                stop.result = run.result("cancelled", reason)
            raise
        finally:
            _close(run)
        result = run.result("ok")
        log.event("sync.finished", status="ok", seconds=result["seconds"], **run.totals)
    return result


def refused(sync: str, reason: str, *, dry_run: bool) -> SyncResult:
    """The result of a sync that was not even begun."""
    return Run(sync, Settings(), Options(dry_run=dry_run)).result("refused", reason)


def _open(run: Run, needs_postgres: bool) -> None:
    try:
        run.connection = postgres.connect(run.settings, f"etl.{run.sync}")
    except SyncError as error:
        if needs_postgres:
            raise
        log.warning("ledger.unreachable", reason=_clean(str(error), run.settings))
        return
    ledger.lock(run)
    if not run.options.dry_run:
        ledger.abandon(run)


def _start(run: Run, shard: tuple[int, int]) -> None:
    run.shard, run.shard_started = shard, dt.datetime.now(dt.UTC)
    run.figures, run.counts, run.rejects = guards.Figures(), {}, None
    if run.connection is None:
        return
    run.figures.previous_mart_rows = ledger.previous_mart_rows(run)
    if not run.options.dry_run:
        ledger.record(run, "running")
    run.connection.commit()


def _finish(run: Run) -> None:
    """Commit the data, its rejects and its ledger row in one; or, dry, none of it."""
    if run.connection is not None:
        if run.options.dry_run:
            run.connection.rollback()
        else:
            ledger.keep_rejects(run)
            ledger.record(run, "ok")
            run.connection.commit()
    for name, count in run.counts.items():
        run.totals[name] = run.totals.get(name, 0) + count
    run.counts = {}


def _fail(run: Run, status: str, error: str) -> None:
    """Undo, then say so in the ledger on a connection of its own."""
    log.event("sync.finished", logging.ERROR, status=status, error=error)
    had_connection = run.connection is not None
    _close(run)
    if run.options.dry_run or not had_connection:
        return
    try:
        run.connection = postgres.connect(run.settings, f"etl.{run.sync}")
        ledger.keep_rejects(run)
        ledger.record(run, status, error)
        run.connection.commit()
    except Exception as second:
        reason = _clean(str(_explained(second, run.settings)), run.settings)
        log.warning("ledger.unreachable", reason=reason)


def _close(run: Run) -> None:
    if run.connection is not None:
        # A connection that the server has cut cannot roll back; there is nothing left to undo.
        with contextlib.suppress(Exception):
            run.connection.rollback()
        with contextlib.suppress(Exception):
            run.connection.close()
        run.connection = None


def _explained(error: Exception, settings: Settings) -> SyncError:
    if isinstance(error, SyncError):
        failure = error
    elif type(error).__module__.startswith("adbc_driver_manager"):
        failure = postgres.explained(error, settings)
    else:
        failure = SyncError(
            f"unexpected {type(error).__name__}: {error}; set ETL_DEBUG=1 for the traceback"
        )
    failure.args = (_clean(str(failure), settings),)
    return failure


def _clean(message: str, settings: Settings) -> str:
    """One line, and no secret in it."""
    for secret in settings.secrets:
        message = message.replace(secret, "***")
    return " ".join(message.split())


def _since(begun: float) -> float:
    return round(time.perf_counter() - begun, 3)
