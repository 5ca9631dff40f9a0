"""`python -m etl.status`: how each sync fares, by the ledger; for people and health checks."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson

from etl.cli import arguments
from etl.cli.flags import SYNCS
from etl.errors import UsageError
from etl.plumbing import failure
from etl.plumbing.redact import as_json, each_text, escaped
from etl.settings import Settings, hidden

# Runs that the trend looks back on.
TREND = 12

# The syncs are daily and Redis keys live for a day: beyond that the page says overdue.
OVERDUE_HOURS = 24.0

_ABOUT = (
    "How the syncs fare: last runs, rejected rows, the mail queue, and what is overdue.",
    "Settings come from the environment (see .env.example). Exit codes: 0 read, 1 Postgres"
    " cannot be read or, with --max-age, a sync is overdue, 2 wrong usage or settings.",
)


@dataclass(frozen=True)
class Flags:
    """What was asked for on the command line."""

    sync: str = arguments.flag("all", "NAME", f"{', '.join(SYNCS)}, or all of them (all)")
    max_age: float | None = arguments.flag(
        None,
        "HOURS",
        f"exit 1 where a sync had no ok run for so long, for health checks ({OVERDUE_HOURS:g},"
        " and exit 0)",
    )
    history: int = arguments.flag(0, "N", "also list the last N runs")
    json: bool = arguments.flag(False, "", "print one JSON object on stdout and nothing else there")

    def __post_init__(self) -> None:
        if self.sync not in ("all", *SYNCS):
            raise UsageError(f"unknown sync {self.sync!r}; it can be all, {', '.join(SYNCS)}")
        if self.max_age is not None and not _is_number(self.max_age):
            raise UsageError(f"--max-age takes a number of hours, not {self.max_age!r}")
        if not _is_number(self.history) or self.history != int(self.history):
            raise UsageError(f"--history takes a whole number from 0 on, not {self.history!r}")

    @property
    def syncs(self) -> tuple[str, ...]:
        """The syncs to look at."""
        return SYNCS if self.sync == "all" else (self.sync,)

    @property
    def hours(self) -> float:
        """How many hours without an ok run make a sync overdue."""
        return OVERDUE_HOURS if self.max_age is None else self.max_age


@failure.sanitised()
def status(flags: Flags, now: dt.datetime) -> dict[str, Any]:
    """Read the ledger, the rejects and the queue.

    Returns:
        `syncs`, one dict each: `sync`, `last` (its last run as in the ledger, None: never
        run), `ok_at`, `overdue`, `abandoned` (it says running but its lock is free), `trend`
        (its last runs, oldest first) and `rejects` (of the last run, by reason); `queue`:
        mails by status; `reins`: allowlist, paused and capped templates; `overdue`: names; with
        `--history` also `history`, newest first.

    Raises:
        SyncError: Postgres cannot be reached or read.
    """
    from etl import postgres
    from etl.postgres import trust

    settings = Settings.from_environment()
    with postgres.session(settings, "etl.status") as connection:
        trust.check(connection, settings)
        # Before the runs: whoever began before `now` and still runs then holds a lock now.
        held = {
            sync
            for sync in flags.syncs
            if postgres.query(connection, "lock_owner", f"etl.{sync}", None, None)
        }
        runs = postgres.query(connection, "status_runs", max(TREND, flags.history))
        ids = [run["run_id"] for run in runs if run["recency"] == 1]
        queue = postgres.query(connection, "status_queue")
        (reins,) = postgres.query(connection, "status_reins")
        known = _Snapshot(
            now=now,
            max_age=flags.hours,
            runs=[run for run in runs if run["sync"] in flags.syncs],
            ok_at={row["sync"]: row["ok_at"] for row in postgres.query(connection, "status_ok")},
            rejects=postgres.query(connection, "status_rejects", orjson.dumps(ids).decode()),
            held=held,
        )
    syncs = [_sync_status(sync, known) for sync in flags.syncs]
    return {
        "at": now,
        "syncs": syncs,
        "queue": {row.pop("status"): row for row in queue},
        "reins": reins,
        "overdue": [sync["sync"] for sync in syncs if sync["overdue"]],
        **({"history": known.runs[: flags.history]} if flags.history else {}),
    }


@dataclass(frozen=True)
class _Snapshot:
    """What was read, of all syncs."""

    now: dt.datetime
    max_age: float
    runs: list[dict[str, Any]]
    ok_at: dict[str, dt.datetime]
    rejects: list[dict[str, Any]]
    held: set[str]  # syncs whose lock somebody holds


def _sync_status(sync: str, known: _Snapshot) -> dict[str, Any]:
    runs = [run for run in known.runs if run["sync"] == sync]
    last = runs[0] if runs else None
    ok_at = known.ok_at.get(sync)
    return {
        "sync": sync,
        "last": last,
        "ok_at": ok_at,
        "overdue": ok_at is None or known.now - ok_at > dt.timedelta(hours=known.max_age),
        "abandoned": bool(
            last
            and last["status"] == "running"
            and last["started_at"] < known.now
            and sync not in known.held
        ),
        "rejects": {row["reason"]: row["rows"] for row in known.rejects if row["sync"] == sync},
        "trend": [
            {name: run[name] for name in ("started_at", "status", "seconds", "extracted")}
            for run in reversed(runs[:TREND])
        ],
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


def _run(flags: Flags) -> int:
    from etl.cli import report
    from etl.status import page as status_page

    known = each_text(status(flags, dt.datetime.now(dt.UTC)), hidden)
    if flags.json:
        report.write(as_json(known))
    else:
        report.write(status_page.page(each_text(known, escaped), flags.hours))
    return 1 if flags.max_age is not None and known["overdue"] else 0


def main() -> NoReturn:
    """Run what sys.argv asks for and exit."""
    arguments.main(Flags, "etl.status", _ABOUT, _run)
