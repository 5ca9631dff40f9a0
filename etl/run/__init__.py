"""One run of a sync: its lock, its ledger row, its result, and how it ends.

`execute` is what every `sync()` calls. Lock, staging, merge, rejects and the ledger's `ok` are one
transaction on one connection, so that a run which lost its lock cannot commit, and a killed one
leaves nothing.
"""

from __future__ import annotations

import contextlib
import logging
from concurrent.futures import wait
from functools import partial
from typing import TYPE_CHECKING

from polars.exceptions import PanicException

from etl import postgres
from etl.errors import AlreadyRunning, Cancelled, ConnectionLost, SyncError
from etl.options import Options
from etl.plumbing import cancellation, failure, folder, log, signals
from etl.plumbing.retry import retry
from etl.postgres import STOP_SECONDS, in_thread, trust
from etl.run import ledger
from etl.run.context import Run
from etl.run.job import Job
from etl.settings import Settings, hiding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from etl.result import SyncResult

__all__ = ["Job", "Options", "Run", "execute", "record_skipped"]


@failure.sanitised()
def execute(
    sync: str,
    load: Callable[[Run], None],
    options: Options,
    *,
    needs_postgres: bool = True,
    settings: Settings | None = None,
) -> SyncResult:
    """Take the lock, load, let the guards look, and commit with the ledger row.

    Args:
        sync: its name: the query, the lock and the ledger go by it.
        load: reads, reshapes and writes, but does not commit.
        options: how to run.
        needs_postgres: False does the work without lock and ledger where Postgres is away.
        settings: those of the environment, unless given.

    Raises:
        SyncError: the run failed (`Refused`: a guard stopped it); it has `.result`.
        Cancelled: a signal or `etl.cancel` ended it; it has `.result`.
    """
    job = Job(sync, settings or Settings.from_environment(), options, needs_postgres)
    attempts = [Run(job)]
    stops_before = signals.count()
    with hiding(job.settings.secrets), log.context(sync=sync, run_id=job.run_id):
        log.event("sync.started", dry_run=options.dry_run, forced=options.force)
        try:
            # The whole of it is safe to do again: a transaction is gone with its server.
            with cancellation.cancellable():
                retry(
                    partial(_attempt, attempts, load),
                    job.settings.retry_seconds,
                    lambda error: needs_postgres and isinstance(error, ConnectionLost),
                    "server.lost",
                )
        except BaseException as error:
            # DuckDB and the drivers turn a stop into an error of their own; a defect of Polars
            # is no Exception either.
            failed = isinstance(error, Exception | PanicException)
            stop = signals.pending(stops_before) or (None if failed else error)
            ended = _cancelled(attempts[-1], stop) if stop else _failed(attempts[-1], error)
            if ended is error:
                raise
            raise ended from error
        finally:
            attempts[-1].close()
        attempts[-1].log_warnings()
        result = attempts[-1].result("ok")
        log.event("sync.finished", status="ok", seconds=result["seconds"], **attempts[-1].counts)
    return result


def record_skipped(sync: str, reason: str, *, dry_run: bool) -> SyncResult:
    """Return the result of a sync that was not begun, after recording it in the ledger."""
    run = Run(Job(sync, Settings.from_environment(), Options(dry_run=dry_run)))
    run.in_ledger = not dry_run
    with log.context(sync=sync, run_id=run.job.run_id):
        _end(run, "refused", reason)
    return run.result("refused", reason)


def _failed(run: Run, error: BaseException) -> SyncError:
    # Where there is a SQLSTATE the server has answered.
    before = "" if getattr(error, "sqlstate", None) else _maybe_committed(run)
    problem = failure.to_sync_error(error, run.settings, before)
    _end(run, problem.status, str(problem))
    problem.result = run.result(problem.status, str(problem))
    return problem


def _cancelled(run: Run, stop: BaseException) -> BaseException:
    name = str(stop) if isinstance(stop, Cancelled) else type(stop).__name__
    reason = f"{_maybe_committed(run)}cancelled by {name}"
    _end(run, "cancelled", reason)
    if isinstance(stop, Cancelled):
        stop.result = run.result("cancelled", reason)
    return stop


def _maybe_committed(run: Run) -> str:
    if not run.committing:
        return ""
    return "the commit may have gone through (python -m etl.status tells): "


def _attempt(attempts: list[Run], load: Callable[[Run], None]) -> None:
    earlier = attempts[-1]
    earlier.close()
    run = Run(earlier.job, number=len(attempts), in_ledger=earlier.in_ledger)
    unanswered = [one for one in attempts if one.committing]
    attempts.append(run)
    with folder.temporary() as run.folder, _connected(run):
        if unanswered and ledger.is_committed(run):
            done = unanswered[-1]
            run.counts, run.metrics = done.counts, done.metrics
            run.warnings, run.unmapped = done.warnings, done.unmapped
            return
        load(run)
        run.check_counts()
        run.check_guards()
        _commit(run)


@contextlib.contextmanager
def _connected(run: Run) -> Iterator[None]:
    """Connect, say in the ledger that the run is under way, and begin its transaction.

    The transaction of a run that a guard or we ourselves ended stays open, and with it the lock,
    until its end is in the ledger. After a failed statement the server has let go of both.
    """
    try:
        with _ledger(run):
            run.connection = retry(
                partial(postgres.connect, run.settings, f"etl.{run.job.sync}"),
                0 if run.job.needs_postgres else run.settings.retry_seconds,  # `execute` retries
                lambda error: isinstance(error, ConnectionLost),
                "server.lost",
            )
            ledger.begin(run)
        yield
    except BaseException:
        if run.connection is not None:
            run.connection.cancel()  # it may be writing to the run's folder
        raise


def _commit(run: Run) -> None:
    """Commit the data with its rejects and its ledger row; a dry run rolls back."""
    if run.options.dry_run and run.connection is not None:
        run.connection.try_rollback()
    elif run.connection is not None:
        with _ledger(run):
            ledger.insert_rejects(run.postgres, run)
            run.drop_staged()
            run.finishing = True
            ledger.record(run.postgres, run, "ok")
            run.committing = True
            run.postgres.commit()
            run.finishing = run.committing = False


@contextlib.contextmanager
def _ledger(run: Run) -> Iterator[None]:
    """Let a sync that can do without Postgres go on without its ledger, and say so."""
    try:
        yield
    except Exception as error:
        if run.job.needs_postgres or isinstance(error, AlreadyRunning | ledger.LostCountError):
            raise
        reason = str(failure.to_sync_error(error, run.settings))
        log.warning("ledger.unreachable", reason=reason)
        if run.connection is not None:
            run.connection.close()
        run.connection, run.in_ledger = None, False


def _end(run: Run, status: str, error: str) -> None:
    """Say in the log and in the ledger how a run ended that is rolled back.

    A stop does not wait for a server that does not answer.
    """
    run.log_warnings()
    log.event("sync.finished", logging.ERROR, status=status, error=error)
    if not run.in_ledger:
        return
    if run.finishing and run.connection is not None:
        run.connection.try_rollback()  # its own change of the ledger's row would be in the way
    is_stop = status == "cancelled"
    if not (is_stop and run.connection is not None and run.connection.abandoned):
        recorded = in_thread(partial(_record_apart, run, status, error))
        if wait([recorded], timeout=STOP_SECONDS if is_stop else None).done:
            return
    log.warning("ledger.unreachable", reason="no answer in time; its end may not be recorded")


def _record_apart(run: Run, status: str, error: str) -> None:
    """Write the ledger row on a connection of its own."""
    try:
        with postgres.session(run.settings, f"etl.{run.job.sync}") as connection:
            trust.check(connection, run.settings)
            if ledger.record(connection, run, status, error):
                ledger.insert_rejects(connection, run)
            connection.commit()
    except Exception as second:
        reason = str(failure.to_sync_error(second, run.settings))
        log.warning("ledger.unreachable", reason=reason)
