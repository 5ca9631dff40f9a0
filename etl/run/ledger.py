"""The ledger etl.sync_runs, the rejects beside it, and the lock that keeps runs apart.

Nothing here commits the data of a run.
"""

from __future__ import annotations

import datetime as dt
import getpass
import os
import socket
import time
from typing import TYPE_CHECKING

import orjson

from etl import __version__, postgres
from etl.errors import Transient
from etl.plumbing import cancellation, log
from etl.postgres import sessions
from etl.run.state import Previous
from etl.settings import hidden

if TYPE_CHECKING:
    from etl.postgres import Connection
    from etl.run.state import Run

# How often a run that waits for another asks again, in seconds.
_ASK_AGAIN = 0.5


class AlreadyRunning(Transient):
    """Another run holds the lock."""


def lock(run: Run) -> None:
    """Take the run's lock, waiting for other runs no longer than `wait` seconds.

    Raises:
        AlreadyRunning: somebody holds it; the message says who, where and since when.
    """
    # The session of an attempt that lost its server may take a while to end.
    lingering = run.settings.retry_seconds if run.attempts > 1 else 0
    deadline = time.monotonic() + max(run.options.wait, lingering)
    waiting = False
    while not _locked(run):
        holder = _holder(run) or "it has just ended; run again"
        if time.monotonic() >= deadline:
            raise AlreadyRunning(f"{run.sync} is already running: {holder}")
        if not waiting:
            log.event("lock.waiting", seconds=run.options.wait, holder=holder)
        waiting = True
        cancellation.pause(min(_ASK_AGAIN, max(deadline - time.monotonic(), 0)))


def unlock(run: Run) -> None:
    """Let go of the lock; the session would hold it until the server has done away with it."""
    postgres.query(run.postgres, "unlock")
    run.postgres.commit()


def abandon(run: Run) -> None:
    """Mark as failed what a killed process left `running`; whoever holds the lock may."""
    for row in postgres.query(run.postgres, "abandon_runs", run.sync, *_part(run), run.run_id):
        since = f"{row['started_at']:%Y-%m-%d %H:%M:%S} UTC"
        log.warning("run.abandoned", abandoned=row["run_id"], host=row["host"], since=since)
    run.postgres.commit()


def previous(run: Run) -> Previous | None:
    """What the last ok run of this sync saw; None: there was none."""
    rows = postgres.query(run.postgres, "last_run", run.sync)
    if not rows:
        return None
    (last,) = rows
    written = {int(shard): keys for shard, keys in orjson.loads(last["written"] or "{}").items()}
    facts = last["began_at"], last["shards"], written, last["warning"]
    return Previous(last["mart_rows"] or 0, *facts)


def record(connection: Connection, run: Run, status: str, error: str | None = None) -> bool:
    """Write the run's row (of the shard at hand), or write it again with its end.

    Returns:
        False where the row says `ok` already: that came with the data and stays.

    Raises:
        SyncError: something on the table dropped the row.
    """
    finished = None if status == "running" else dt.datetime.now(dt.UTC)
    row = {
        "run_id": run.run_id,
        "sync": run.sync,
        "shard": run.shard[0],
        "shards": run.shard[1],
        "status": status,
        "started_at": run.shard_started,
        "finished_at": finished,
        "mart_rows": run.figures.mart_rows,
        **run.counts,
        "seconds": finished and (finished - run.shard_started).total_seconds(),
        "forced": run.options.force,
        "warning": "; ".join(run.warnings.values()) or None,
        "error": error,
        "version": __version__,
        "host": hidden(socket.gethostname()),
        # An environment may hold half characters, which JSON cannot.
        "started_by": hidden(_started_by()).encode(errors="backslashreplace").decode(),
    }
    if postgres.write(connection, "etl.sync_runs", "record_run", orjson.dumps(row).decode()):
        return True
    # Asked apart: record_run may just have waited for the commit that made the row ok.
    (is_ok,) = postgres.query(connection, "is_ok", run.run_id, run.sync, run.shard[0])
    postgres.refuse_unwritten(connection, "etl.sync_runs", 0 if is_ok["yes"] else 1)
    return False


def keep_rejects(connection: Connection, run: Run) -> None:
    """COPY the rejected rows of the shard at hand to etl.rejected_rows."""
    if run.rejects is not None and len(run.rejects.rows):
        postgres.stage(connection, "rejects", run.rejects.rows)
        table = "etl.rejected_rows"
        (kept,) = postgres.write(connection, table, "keep_rejects", run.run_id, run.sync)
        postgres.refuse_unwritten(connection, table, len(run.rejects.rows) - kept["rows"])


def _locked(run: Run) -> bool:
    (row,) = postgres.query(run.postgres, "lock", f"etl.{run.sync}", *_part(run))
    # Two that cut the mart differently both get their locks; seeing each other, both step back.
    held = bool(row["held"]) and _holder(run) is None
    if held:
        run.postgres.commit()  # the lock outlives it; an open transaction would hold vacuum
    else:
        unlock(run)
    return held


def _holder(run: Run) -> str | None:
    holders = postgres.query(run.postgres, "lock_owner", f"etl.{run.sync}", *_part(run))
    if not holders:
        return None
    who, end = sessions.described(holders[0]), sessions.ending(holders[0])
    return f"its lock is held by {who}; wait for it (--wait SECONDS) or end it ({end})"


def _part(run: Run) -> tuple[int | None, int | None]:
    """The shard to lock; of a run over the whole mart, whatever its shards, it is all."""
    return run.options.part or (None, None)


def _started_by() -> str:
    if airflow := os.environ.get("AIRFLOW_CTX_DAG_RUN_ID"):
        return f"airflow {airflow}"
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        return f"uid {os.getuid()}"
