"""The ledger etl.sync_runs, the rejects beside it, and the lock that keeps runs apart.

The lock is one of the transaction: whoever has lost it cannot commit.
"""

from __future__ import annotations

import datetime as dt
import getpass
import os
import socket
import time
from typing import Any

import orjson

from etl import __version__, postgres, warehouse
from etl.errors import AlreadyRunning, SyncError
from etl.plumbing import cancellation, log
from etl.postgres import Connection, sessions, trust
from etl.result import count_names
from etl.run.attempt import Attempt
from etl.run.job import Job, PreviousRun
from etl.run.tally import Tally
from etl.settings import hidden

# How often a run that waits for another asks again, in seconds.
_ASK_AGAIN = 0.5

# Whoever waits with a shard has part of its locks for some milliseconds each time it asks, so a run
# that may not wait asks twice.
_MOMENT = 0.1


class LostCountError(SyncError):
    """The ledger has no column for a count, or does not write it."""


def begin(attempt: Attempt, session: Connection) -> PreviousRun | None:
    """Say that the run is under way, begin the transaction that it loads in, and look back.

    Raises:
        AlreadyRunning: another run holds the lock and keeps it; see `lock`.
    """
    job = attempt.job
    attempt.in_ledger = not job.options.dry_run
    # The session of an attempt that lost its server may take a while to end.
    wait = max(job.options.wait, job.settings.retry_seconds if attempt.number > 1 else 0)
    trust.check(session, job.settings)
    lock(session, job, wait)
    if attempt.in_ledger:
        # In a transaction of its own, so that others see it. Its end lets go of the lock.
        attempt.finishing = True
        _mark_abandoned(session, job)
        if record(session, attempt.tally, "running"):
            session.commit()
            lock(session, job, wait)
        attempt.finishing = False
    return last_ok_run(session, job.sync)


def last_ok_run(connection: Connection, sync: str) -> PreviousRun | None:
    """Return what the last ok run of a sync saw; None: there was none."""
    rows = postgres.query(connection, "last_ok_run", sync)
    if not rows:
        return None
    (last,) = rows
    written = {int(shard): keys for shard, keys in orjson.loads(last["written"] or "{}").items()}
    facts = last["began_at"], last["shards"], written, last["warning"]
    return PreviousRun(last["mart_rows"] or 0, *facts)


def is_ok(session: Connection, job: Job) -> bool:
    """Does the run's row say `ok`? Then its data are there too, which came with it."""
    (row,) = postgres.query(session, "is_ok", job.run_id, job.sync, job.shard[0])
    return bool(row["yes"])


def record(session: Connection, tally: Tally, status: str, error: str | None = None) -> bool:
    """Write the run's row, or write it again with its end.

    Returns:
        False where the row says `ok` already: that came with the data and stays.

    Raises:
        SyncError: something on the table dropped the row, or a count of it (`LostCountError`).
    """
    counts = {name: tally.counts.get(name) for name in count_names(tally.job.sync)}
    row = {**_row(tally, status), **counts, "error": error}
    as_json = [orjson.dumps(each).decode() for each in (row, counts)]
    if rows := postgres.write(session, "etl.sync_runs", "record_run", *as_json):
        if lost := rows[0]["lost"]:
            raise LostCountError(
                f"etl.sync_runs does not keep the count {lost}; run python -m etl.init_db (a count"
                " of your own: schema.sql, record_run.sql and status_runs.sql must have it)"
            )
        return True
    # Asked apart: record_run may just have waited for the commit that made the row ok.
    postgres.refuse_unwritten(session, "etl.sync_runs", 0 if is_ok(session, tally.job) else 1)
    return False


def _row(tally: Tally, status: str) -> dict[str, Any]:
    job, finished = tally.job, None if status == "running" else dt.datetime.now(dt.UTC)
    return {
        "run_id": job.run_id,
        "sync": job.sync,
        "shard": job.shard[0],
        "shards": job.shard[1],
        "status": status,
        "started_at": job.started_at,
        "finished_at": finished,
        "mart_rows": tally.metrics.mart_rows,
        "mart_built_at": tally.metrics.built_at,
        "seconds": finished and (finished - job.started_at).total_seconds(),
        "forced": job.options.force,
        "warning": "; ".join(tally.warnings.values()) or None,
        "version": __version__,
        "host": hidden(socket.gethostname()),
        # An environment may hold half characters, which JSON cannot.
        "started_by": hidden(_started_by()).encode(errors="backslashreplace").decode(),
    }


def insert_rejects(session: Connection, tally: Tally) -> None:
    """COPY the rejected rows to etl.rejected_rows."""
    if tally.rejects is None or not len(tally.rejects.rows):
        return
    rows = tally.rejects.rows
    postgres.copy_to_temp(session, "rejects", warehouse.to_batches([rows]))
    table, names = "etl.rejected_rows", (tally.job.run_id, tally.job.sync)
    (inserted,) = postgres.write(session, table, "insert_rejects", *names)
    postgres.refuse_unwritten(session, table, len(rows) - inserted["rows"])
    postgres.execute(session, "DROP TABLE pg_temp.rejects")


def lock(session: Connection, job: Job, wait: float = 0) -> None:
    """Take the run's lock, waiting for other runs no longer than `wait` seconds.

    Raises:
        AlreadyRunning: somebody holds it; the message says who, where and since when.
    """
    deadline = time.monotonic() + max(wait, _MOMENT)
    waiting = False
    while holder := _try_lock(session, job):
        if time.monotonic() >= deadline:
            raise AlreadyRunning(_running(job.sync, holder))
        if wait and not waiting:
            log.event("lock.waiting", seconds=wait, holder=holder)
        waiting = True
        cancellation.pause(min(_ASK_AGAIN, max(deadline - time.monotonic(), 0)))


def _try_lock(session: Connection, job: Job) -> str | None:
    """Take the lock and return None, or who holds it."""
    name = f"etl.{job.sync}", *(job.options.shard or (None, None))
    (row,) = postgres.query(session, "lock", *name)
    # Two that cut the mart differently both get their locks; seeing each other, both step back.
    holder = _lock_owner(session, *name)
    if row["held"] and holder is None:
        return None
    session.rollback()
    return holder or "it has just ended; run again"


def running(connection: Connection, sync: str) -> str | None:
    """Say who runs a sync just now, without trying its lock; None: nobody."""
    holder = _lock_owner(connection, f"etl.{sync}", None, None)
    return holder and _running(sync, holder)


def _running(sync: str, holder: str) -> str:
    return f"{sync} is already running: {holder}"


def _lock_owner(connection: Connection, name: str, index: int | None, of: int | None) -> str | None:
    owners = postgres.query(connection, "lock_owner", name, index, of)
    if not owners:
        return None
    who, end = sessions.described(owners[0]), sessions.ending(owners[0])
    return f"its lock is held by {who}; wait for it (--wait SECONDS) or end it ({end})"


def _mark_abandoned(session: Connection, job: Job) -> None:
    """Mark as failed what a killed process left `running`; whoever holds the lock may."""
    shard = job.options.shard or (None, None)
    for row in postgres.query(session, "mark_abandoned", job.sync, *shard, job.run_id):
        since = f"{row['started_at']:%Y-%m-%d %H:%M:%S} UTC"
        log.warning("run.abandoned", abandoned=row["run_id"], host=row["host"], since=since)


def _started_by() -> str:
    if airflow := os.environ.get("AIRFLOW_CTX_DAG_RUN_ID"):
        return f"airflow {airflow}"
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        return f"uid {os.getuid()}"
