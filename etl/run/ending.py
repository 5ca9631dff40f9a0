"""How a run ends: its last words in the log, its row in the ledger, its result or its error."""

from __future__ import annotations

import logging
from concurrent.futures import wait
from functools import partial

from polars.exceptions import PanicException

from etl import postgres
from etl.errors import Cancelled, SyncError
from etl.plumbing import failure, log
from etl.plumbing.threads import in_thread
from etl.postgres import STOP_SECONDS
from etl.result import SyncResult
from etl.run import ledger
from etl.run.attempt import Attempt
from etl.run.tally import Tally


def succeed(tally: Tally) -> SyncResult:
    """Return the result of a run that has committed."""
    tally.log_warnings()
    result = tally.result("ok")
    log.event("sync.finished", status="ok", seconds=result["seconds"], **tally.counts)
    return result


def fail(
    attempt: Attempt, error: BaseException, stop: BaseException | None
) -> SyncError | BaseException:
    """Record the end of a run that is rolled back, and return the error that tells it.

    Args:
        attempt: the last one.
        error: what ended it.
        stop: a signal, if one came meanwhile.

    Returns:
        `error` itself where that tells it; it has `.result`.
    """
    # DuckDB and the drivers turn a stop into an error of their own; a defect of Polars is no
    # Exception either.
    if stop is None and isinstance(error, Exception | PanicException):
        # Where there is a SQLSTATE the server has answered.
        before = "" if getattr(error, "sqlstate", None) else _maybe_committed(attempt)
        problem = failure.to_sync_error(error, attempt.job.settings, before)
        problem.result = end(attempt, problem.status, str(problem))
        return problem
    stop = stop or error
    name = str(stop) if isinstance(stop, Cancelled) else type(stop).__name__
    result = end(attempt, "cancelled", f"{_maybe_committed(attempt)}cancelled by {name}")
    if isinstance(stop, Cancelled):
        stop.result = result
    return stop


def _maybe_committed(attempt: Attempt) -> str:
    if not attempt.committing:
        return ""
    return "the commit may have gone through (python -m etl.status tells): "


def end(attempt: Attempt, status: str, error: str) -> SyncResult:
    """Say in the log and in the ledger how a run ended that is rolled back; return its result."""
    attempt.tally.log_warnings()
    log.event("sync.finished", logging.ERROR, status=status, error=error)
    if attempt.in_ledger and not _is_recorded(attempt, status, error):
        log.warning("ledger.unreachable", reason="no answer in time; its end may not be recorded")
    return attempt.tally.result(status, error)


def _is_recorded(attempt: Attempt, status: str, error: str) -> bool:
    """Record the end; a stop does not wait for a server that does not answer."""
    session, is_stop = attempt.session, status == "cancelled"
    if session is not None and attempt.finishing:
        session.try_rollback()  # its own change of the ledger's row would be in the way
    if session is not None and is_stop and session.abandoned:
        return False
    recorded = in_thread(partial(_record_apart, attempt.tally, status, error))
    return bool(wait([recorded], timeout=STOP_SECONDS if is_stop else None).done)


def _record_apart(tally: Tally, status: str, error: str) -> None:
    """Write the ledger row on a connection of its own."""
    settings = tally.job.settings
    try:
        with postgres.trusted_session(settings, f"etl.{tally.job.sync}") as session:
            if ledger.record(session, tally, status, error):
                ledger.insert_rejects(session, tally)
            session.commit()
    except Exception as second:
        reason = str(failure.to_sync_error(second, settings))
        log.warning("ledger.unreachable", reason=reason)
