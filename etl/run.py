"""One run of a sync: its lock, its ledger row, its result, and how it ends.

`execute` is what every `sync()` calls. The connection that holds the lock is the one that
loads, so that a run which lost its lock cannot commit.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from etl import failure, ledger, log, postgres, signals
from etl.errors import Stopped, SyncError
from etl.options import Options, SyncResult
from etl.settings import Settings
from etl.state import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Run", "execute", "refused"]


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
    run = Run(sync, Settings.from_environment(), options, needs_postgres, shard=options.walk[0])
    heard = signals.heard()
    with log.context(sync=sync, run_id=run.run_id):
        log.event("sync.started", dry_run=options.dry_run, forced=options.force)
        try:
            _open(run)
            for shard in options.walk:
                _start(run, shard)
                load(run)
                run.judge()
                _finish(run)
            _unlock(run)
        except BaseException as error:
            # DuckDB and the drivers turn a stop into an error of their own.
            stop = signals.received(heard) or (None if isinstance(error, Exception) else error)
            ended = _cancelled(run, stop) if stop else _failed(run, error)
            if ended is error:
                raise
            raise ended from error
        finally:
            _close(run)
        result = run.result("ok")
        log.event("sync.finished", status="ok", seconds=result["seconds"], **run.totals)
    return result


def _failed(run: Run, error: BaseException) -> SyncError:
    problem = failure.explained(error, run.settings, _done_before(run))
    _fail(run, problem.status, str(problem))
    problem.result = run.result(problem.status, str(problem))
    return problem


def _cancelled(run: Run, stop: BaseException) -> BaseException:
    reason = f"{_done_before(run)}cancelled by {str(stop) or type(stop).__name__}"
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


def _open(run: Run) -> None:
    with _ledger(run):
        run.connection = postgres.connect(run.settings, f"etl.{run.sync}")
        run.in_ledger = not run.options.dry_run
        ledger.lock(run)
        run.previous = ledger.previous(run)
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
            run.postgres.commit()
    elif run.connection is not None:
        run.connection.rollback()
    for name, count in run.counts.items():
        run.totals[name] = run.totals.get(name, 0) + count
    run.rejects_kept += len(run.rejects.rows) if run.rejects else 0
    run.done += 1
    # What is stopped between two shards is the next one.
    run.begin(run.options.walk[min(run.done, len(run.options.walk) - 1)])


def _fail(run: Run, status: str, error: str) -> None:
    """Undo, then say so in the ledger on a connection of its own; the lock is still held."""
    log.event("sync.finished", logging.ERROR, status=status, error=error)
    if run.connection is not None:
        postgres.undo(run.connection)
    if not run.in_ledger:
        return
    try:
        with postgres.session(run.settings, f"etl.{run.sync}") as connection:
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
        # What was not committed is undone with it.
        with contextlib.suppress(Exception):
            run.connection.close()
        run.connection = None


def _done_before(run: Run) -> str:
    """What stays of a walk over shards that ends early; nothing to say of other runs."""
    if not run.done or run.options.dry_run or run.done == len(run.options.walk):
        return ""
    return f"{run.done} of {len(run.options.walk)} shards are loaded and stay; of the next: "
