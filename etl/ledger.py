"""The ledger etl.sync_runs, the rejects beside it, and the lock that keeps runs apart.

All of it goes over the run's own connection; nothing here commits the data.
"""

from __future__ import annotations

import datetime as dt
import getpass
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import orjson

from etl import __version__, log, postgres, queries
from etl.errors import SyncError

if TYPE_CHECKING:
    from etl.run import Run

# How often a run that waits for another asks again, in seconds.
_ASK_AGAIN = 0.5


def lock(run: Run) -> None:
    """Take the run's lock, waiting for another run no longer than `wait` seconds.

    Raises:
        SyncError: somebody holds it; the message says who, where and since when.
    """
    shard = None if run.options.shard is None else "{}/{}".format(*run.options.shard)
    deadline = time.monotonic() + run.options.wait
    while not _locked(run, shard):
        if time.monotonic() >= deadline:
            raise SyncError(f"{run.sync} is already running: {_holder(run, shard)}")
        time.sleep(_ASK_AGAIN)


def _locked(run: Run, shard: str | None) -> bool:
    (row,) = _select(run, "lock", f"etl.{run.sync}", shard)
    run.postgres.commit()  # a session lock outlives it; an open transaction would hold vacuum
    return bool(row["held"])


def _holder(run: Run, shard: str | None) -> str:
    holders = _select(run, "lock_holder", f"etl.{run.sync}", shard)
    if not holders:
        return "it has just ended; run again"
    name, _, process = holders[0]["who"].rpartition(" ")
    pid, _, host = process.partition("@")
    return (
        f"{name} pid {pid} on {host}, since {holders[0]['since']};"
        " wait for it (--wait SECONDS) or end it"
    )


def abandon(run: Run) -> None:
    """Mark as failed what a killed process left `running`; whoever holds the lock may."""
    index, of = run.options.shard or (None, None)
    for row in _select(run, "abandon_runs", run.sync, index, of, run.run_id):
        log.warning("run.abandoned", abandoned=row["run_id"], since=str(row["started_at"]))
    run.postgres.commit()


def previous_mart_rows(run: Run) -> int | None:
    """How many rows the mart had at this sync's last ok run; None: there was none."""
    rows = _select(run, "last_run", run.sync)
    return rows[0]["mart_rows"] if rows else None


def keep_rejects(run: Run) -> None:
    """COPY the rejected rows to etl.rejected_rows."""
    if run.rejects is not None and run.rejects.total:
        postgres.stage(run.postgres, "rejects", run.rejects.rows)
        keep = queries.load("postgres", "keep_rejects")
        postgres.execute(run.postgres, keep, run.run_id, run.sync)


def record(run: Run, status: str, error: str | None = None) -> None:
    """Write the run's row (of the shard at hand), or write it again with its end."""
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
        "error": error,
        "version": __version__,
        "host": socket.gethostname(),
        "started_by": _started_by(),
    }
    statement = queries.load("postgres", "record_run")
    postgres.execute(run.postgres, statement, orjson.dumps(row).decode())


def _started_by() -> str:
    if airflow := os.environ.get("AIRFLOW_CTX_DAG_RUN_ID"):
        return f"airflow {airflow}"
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        return f"uid {os.getuid()}"


def _select(run: Run, name: str, *parameters: Any) -> list[dict[str, Any]]:
    return postgres.select(run.postgres, queries.load("postgres", name), *parameters)
