"""One run of a sync: its attempts, the transaction of each, and its commit.

`execute` is what every `sync()` calls. Lock, staging, merge, rejects and the ledger's `ok` are one
transaction on one connection, so that a run which lost its lock cannot commit, and a killed one
leaves nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from etl import postgres
from etl.errors import AlreadyRunning, ConnectionLost
from etl.options import Options
from etl.plumbing import cancellation, failure, folder, log, signals
from etl.plumbing.retry import retry
from etl.result import SyncResult
from etl.run import ending, ledger
from etl.run.attempt import Attempt
from etl.run.context import Run
from etl.run.job import Job, PreviousRun
from etl.settings import Settings, hiding

__all__ = ["Attempt", "Job", "Options", "Run", "execute", "record_skipped"]


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
    attempts = [Attempt(job)]  # so that a stop before the first has one to end
    stops_before = signals.count()
    with hiding(job.settings.secrets), log.context(sync=sync, run_id=job.run_id):
        log.event("sync.started", dry_run=options.dry_run, forced=options.force)
        try:
            with cancellation.cancellable():
                _run_attempts(attempts, load)
        except BaseException as error:
            ended = ending.fail(attempts[-1], error, signals.pending(stops_before))
            if ended is error:
                raise
            raise ended from error
        finally:
            attempts[-1].close()
        return ending.succeed(attempts[-1].tally)


def record_skipped(sync: str, reason: str, *, dry_run: bool) -> SyncResult:
    """Return the result of a sync that was not begun, after recording it in the ledger."""
    attempt = Attempt(Job(sync, Settings.from_environment(), Options(dry_run=dry_run)))
    attempt.in_ledger = not dry_run
    with log.context(sync=sync, run_id=attempt.job.run_id):
        return ending.end(attempt, "refused", reason)


def _run_attempts(attempts: list[Attempt], load: Callable[[Run], None]) -> None:
    """Attempt the whole of it, again where that may succeed: its transaction is gone."""
    job = attempts[0].job
    retry(
        partial(_run_attempt, attempts, load),
        job.settings.retry_seconds,
        lambda error: job.needs_postgres and isinstance(error, ConnectionLost),
        "attempt.failed",
    )


def _run_attempt(attempts: list[Attempt], load: Callable[[Run], None]) -> None:
    earlier = attempts[-1]
    earlier.close()
    attempt = Attempt(earlier.job, number=len(attempts), in_ledger=earlier.in_ledger)
    maybe_committed = [one for one in attempts if one.committing]  # no answer came
    attempts.append(attempt)
    with folder.temporary() as place, _connected(attempt) as previous:
        if maybe_committed and attempt.session and ledger.is_ok(attempt.session, attempt.job):
            attempt.tally = maybe_committed[-1].tally
            return
        run = Run(attempt, place, previous)
        load(run)
        attempt.tally.require_counts()
        run.check_guards()
        _commit(attempt, run.staged)


@contextlib.contextmanager
def _connected(attempt: Attempt) -> Iterator[PreviousRun | None]:
    """Connect, say in the ledger that the run is under way, and begin its transaction.

    An error cancels what the session is doing and leaves it open: `execute` closes it when the end
    is in the ledger, so that a run which a guard stopped holds its lock until then.
    """
    job, previous = attempt.job, None
    try:
        with _optional_ledger(attempt):
            # Where Postgres is needed the whole attempt is made again.
            attempt.session = retry(
                partial(postgres.connect, job.settings, f"etl.{job.sync}"),
                0 if job.needs_postgres else job.settings.retry_seconds,
                lambda error: isinstance(error, ConnectionLost),
                "connection.failed",
            )
            previous = ledger.begin(attempt, attempt.session)
        yield previous
    except BaseException:
        if attempt.session is not None:
            attempt.session.cancel()  # it may be writing to the run's folder
        raise


def _commit(attempt: Attempt, staged: list[str]) -> None:
    """Commit the data with its rejects and its ledger row; a dry run rolls back."""
    session = attempt.session
    if session is None:
        return
    if attempt.job.options.dry_run:
        session.try_rollback()
        return
    with _optional_ledger(attempt):
        ledger.insert_rejects(session, attempt.tally)
        for table in staged:  # which a pooler would hand to another client
            postgres.execute(session, f'DROP TABLE IF EXISTS pg_temp."{table}"')
        attempt.finishing = True
        ledger.record(session, attempt.tally, "ok")
        attempt.committing = True
        session.commit()
        attempt.finishing = attempt.committing = False


@contextlib.contextmanager
def _optional_ledger(attempt: Attempt) -> Iterator[None]:
    """Let a sync that can do without Postgres go on without its ledger, and say so."""
    try:
        yield
    except Exception as error:
        job = attempt.job
        if job.needs_postgres or isinstance(error, AlreadyRunning | ledger.LostCountError):
            raise
        log.warning("ledger.unreachable", reason=str(failure.to_sync_error(error, job.settings)))
        attempt.close()
        attempt.session, attempt.in_ledger = None, False
