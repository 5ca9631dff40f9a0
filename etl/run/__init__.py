"""One run of a sync: its lock, its ledger row, its result, and how it ends.

`execute` is what every `sync()` calls. The connection that holds the lock is the one that
loads, so that a run which lost its lock cannot commit.
"""

from __future__ import annotations

import contextlib
import logging
from concurrent.futures import wait
from functools import partial
from typing import TYPE_CHECKING

from polars.exceptions import PanicException

from etl import postgres
from etl.errors import Lost, Stopped, SyncError
from etl.options import Options
from etl.plumbing import cancellation, failure, log, retry, signals
from etl.postgres import trust
from etl.postgres.connection import STOP_SECONDS, in_thread
from etl.result import SyncResult
from etl.run import ledger
from etl.run.state import Run
from etl.settings import Settings, hiding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Run", "execute", "refused"]


@failure.sanitised()
def execute(
    sync: str,
    load: Callable[[Run], None],
    options: Options,
    *,
    needs_postgres: bool = True,
    settings: Settings | None = None,
) -> SyncResult:
    """Take the lock, load every shard asked for, commit each with its ledger row.

    Args:
        sync: its name: the query, the lock and the ledger go by it.
        load: fetches, reshapes and writes, but does not commit.
        options: how to run.
        needs_postgres: False does the work without lock and ledger where Postgres is away.
        settings: those of the environment, unless given.

    Raises:
        SyncError: the run failed (`Refused`: a guard stopped it); it has `.result`.
    """
    settings = settings or Settings.from_environment()
    run = Run(sync, settings, options, needs_postgres, shard=options.walk[0])
    heard = signals.heard()
    with hiding(settings.secrets), log.context(sync=sync, run_id=run.run_id):
        log.event("sync.started", dry_run=options.dry_run, forced=options.force)
        try:
            # The whole of it, which is safe to do again: a transaction is gone with its server.
            with cancellation.cancellable():
                retry.persist(
                    partial(_attempt, run, load),
                    run.settings.retry_seconds,
                    lambda error: needs_postgres and isinstance(error, Lost),
                    "server.lost",
                )
        except BaseException as error:
            # DuckDB and the drivers turn a stop into an error of their own; a defect of Polars
            # is no Exception either.
            failed = isinstance(error, Exception | PanicException)
            stop = signals.received(heard) or (None if failed else error)
            ended = _cancelled(run, stop) if stop else _failed(run, error)
            if ended is error:
                raise
            raise ended from error
        finally:
            _close(run)
        run.warn()
        result = run.result("ok")
        log.event("sync.finished", status="ok", seconds=result["seconds"], **run.totals)
    return result


def _failed(run: Run, error: BaseException) -> SyncError:
    if getattr(error, "sqlstate", None):
        run.committing = False  # the server has answered
    problem = failure.explained(error, run.settings, _done_before(run))
    _fail(run, problem.status, str(problem))
    problem.result = run.result(problem.status, str(problem))
    return problem


def _cancelled(run: Run, stop: BaseException) -> BaseException:
    name = str(stop) if isinstance(stop, Stopped) else type(stop).__name__
    reason = f"{_done_before(run)}cancelled by {name}"
    _fail(run, "cancelled", reason)
    if isinstance(stop, Stopped):
        stop.result = run.result("cancelled", reason)
    return stop


def refused(sync: str, reason: str, *, dry_run: bool) -> SyncResult:
    """The result of a sync that was not even begun, which the ledger records all the same."""
    run = Run(sync, Settings.from_environment(), Options(dry_run=dry_run), in_ledger=not dry_run)
    with log.context(sync=sync, run_id=run.run_id):
        _fail(run, "refused", reason)
    return run.result("refused", reason)


def _attempt(run: Run, load: Callable[[Run], None]) -> None:
    """Load every shard that is not done yet."""
    _close(run)
    _open(run)
    with run.walking():
        for shard in run.options.walk[run.done :]:
            if not _is_committed(run):
                _start(run, shard)
                try:
                    load(run)
                finally:
                    run.let_go_of_the_mart()
                run.judge()
                _finish(run)
            _add_up(run)
    _unlock(run)


def _open(run: Run) -> None:
    run.attempts += 1
    with _ledger(run):
        run.connection = retry.persist(
            partial(postgres.connect, run.settings, f"etl.{run.sync}"),
            0 if run.needs_postgres else run.settings.retry_seconds,
            lambda error: isinstance(error, Lost),
            "server.lost",
        )
        trust.check(run.connection, run.settings)
        run.in_ledger = not run.options.dry_run
        ledger.lock(run)
        run.previous = run.previous or ledger.previous(run)
        run.postgres.commit()
        if not run.options.dry_run:
            ledger.abandon(run)


def _start(run: Run, shard: tuple[int, int]) -> None:
    run.begin(shard)
    if run.in_ledger:
        with _ledger(run):
            ledger.record(run.postgres, run, "running")
            run.postgres.commit()


def _finish(run: Run) -> None:
    """Commit the data, its rejects and its ledger row in one; or, dry, none of it."""
    if run.in_ledger:
        with _ledger(run):
            ledger.keep_rejects(run.postgres, run)
            ledger.record(run.postgres, run, "ok")
            run.committing = True
            run.postgres.commit()
    elif run.connection is not None:
        run.connection.undo()


def _is_committed(run: Run) -> bool:
    """Did a commit whose answer got lost go through? An ok row in the ledger came with its data."""
    if not run.committing or not run.in_ledger:
        return False
    is_ok = not ledger.record(run.postgres, run, "running")
    run.postgres.commit()
    return is_ok


def _add_up(run: Run) -> None:
    for name, count in run.counts.items():
        run.totals[name] = run.totals.get(name, 0) + count
    run.rejects_kept += len(run.rejects.rows) if run.rejects else 0
    run.done += 1
    # What is stopped between two shards is the next one.
    run.begin(run.options.walk[min(run.done, len(run.options.walk) - 1)])


def _fail(run: Run, status: str, error: str) -> None:
    """Undo, then say so in the ledger; the lock is still held.

    A stop does not wait for a server that does not answer.
    """
    run.warn()
    log.event("sync.finished", logging.ERROR, status=status, error=error)
    if run.connection is not None:
        run.connection.undo()
    if not run.in_ledger:
        return
    stopping = status == "cancelled"
    if not (stopping and run.connection is not None and run.connection.stuck):
        recorded = in_thread(partial(_record_apart, run, status, error))
        if wait([recorded], timeout=STOP_SECONDS if stopping else None).done:
            return
    log.warning("ledger.unreachable", reason="no answer in time; its end may not be recorded")


def _record_apart(run: Run, status: str, error: str) -> None:
    """Write the ledger row on a connection of its own."""
    try:
        with postgres.session(run.settings, f"etl.{run.sync}") as connection:
            trust.check(connection, run.settings)
            if ledger.record(connection, run, status, error):
                ledger.keep_rejects(connection, run)
            connection.commit()
    except Exception as second:
        log.warning("ledger.unreachable", reason=str(failure.explained(second, run.settings)))


@contextlib.contextmanager
def _ledger(run: Run) -> Iterator[None]:
    """Where a sync can do without Postgres, let it: say so once and forget the ledger."""
    try:
        yield
    except Exception as error:
        if run.needs_postgres or isinstance(error, ledger.Busy):
            raise
        log.warning("ledger.unreachable", reason=str(failure.explained(error, run.settings)))
        _close(run)
        run.in_ledger = False


def _unlock(run: Run) -> None:
    """Let the next run in now: to drop a big staging table takes the server a while."""
    if run.connection is not None:
        # All is committed, and the lock goes with the connection in any case.
        with contextlib.suppress(Exception):
            ledger.unlock(run)


def _close(run: Run) -> None:
    if run.connection is not None:
        run.connection.close()
        run.connection = None


def _done_before(run: Run) -> str:
    """What stays, or may stay, of a run that ends early; nothing to say of most."""
    if run.committing:
        return "the commit may have gone through (python -m etl.status tells): "
    if not run.done or run.options.dry_run or run.done == len(run.options.walk):
        return ""
    return f"{run.done} of {len(run.options.walk)} shards are loaded and stay; of the next: "
