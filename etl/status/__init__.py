"""`python -m etl.status`: how each sync fares, by the ledger; for people and health checks."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import orjson

from etl.cli import arguments
from etl.plumbing import failure
from etl.plumbing.redact import as_json, each_text, escaped
from etl.result import COMMON_COUNTS
from etl.settings import Settings, hidden
from etl.status.flags import Flags
from etl.status.problems import problem
from etl.syncs import BY_NAME

__all__ = ["Flags", "main", "status"]

# What the trend tells of a run.
_COUNTS = (*COMMON_COUNTS, *(name for sync in BY_NAME.values() for name in sync.counts))
_IN_TREND = ("started_at", "status", "seconds", *_COUNTS)

_ABOUT = (
    "How the syncs fare: last runs, rejected rows, the mail queue, and what is overdue.",
    "Settings come from the environment (see .env.example). Exit codes: 0 read, 1 Postgres"
    " cannot be read, or a sync is overdue (--max-age, --check) or its last run was not ok"
    " (--check), 2 wrong usage or settings.",
)


@failure.sanitised()
def status(flags: Flags, now: dt.datetime) -> dict[str, Any]:
    """Read the ledger, the rejects and the queue.

    Returns:
        `syncs`, one dict each: `sync`, `last` (its last run as in the ledger, None: never
        run), `judged` (the last that has ended), `shard` (one whose last run was not ok), `ok_at`,
        `overdue`, `abandoned` (it says running but its lock is free), `lock_taken` (the last
        attempt, if it found the lock taken), `problem` (`sync`, `what` and `next` command, or
        None), `trend` (its last runs, oldest first) and `rejects` (of the last run, by reason);
        `queue`: mails by status, and in each `templates`; `reins`: allowlist, paused and capped
        templates; `overdue`: names; `problems`: of all syncs; with `--history` also `history`,
        newest first.

    Raises:
        SyncError: Postgres cannot be reached or read.
    """
    known = _read(flags)
    syncs = [_sync_status(sync, known, flags, now) for sync in flags.syncs]
    for sync in syncs:
        sync["problem"] = problem(sync, now, flags.hours)
    return {
        "at": now,
        "syncs": syncs,
        "queue": _by_status(known.queue),
        "reins": known.reins,
        "overdue": [sync["sync"] for sync in syncs if sync["overdue"]],
        "problems": [sync["problem"] for sync in syncs if sync["problem"]],
        **({"history": known.runs[: flags.listed]} if flags.listed else {}),
    }


@dataclass(frozen=True)
class _Snapshot:
    """What was read, of all syncs."""

    held: set[str]  # syncs whose lock somebody holds
    runs: list[dict[str, Any]]  # of the syncs that were asked for
    rejects: list[dict[str, Any]]
    ok_at: dict[str, dt.datetime]
    shards: list[dict[str, Any]]  # whose last run was not ok
    queue: list[dict[str, Any]]
    reins: dict[str, Any]


def _read(flags: Flags) -> _Snapshot:
    from etl import postgres

    with postgres.trusted_session(Settings.from_environment(), "etl.status") as session:
        query = partial(postgres.query, session)
        # Before the runs: whoever began before `now` and still runs then holds a lock now.
        held = {sync for sync in flags.syncs if query("lock_owner", f"etl.{sync}", None, None)}
        runs = query("status_runs", max(flags.runs, flags.listed))
        ids = [run["run_id"] for run in runs if run["recency"] == 1 and not run["lock_taken"]]
        return _Snapshot(
            held=held,
            runs=[run for run in runs if run["sync"] in flags.syncs],
            rejects=query("status_rejects", orjson.dumps(ids).decode()),
            ok_at={row["sync"]: row["ok_at"] for row in query("status_ok")},
            shards=query("status_shards"),
            queue=query("status_queue"),
            reins=query("status_reins")[0],
        )


def _sync_status(sync: str, known: _Snapshot, flags: Flags, now: dt.datetime) -> dict[str, Any]:
    every = [run for run in known.runs if run["sync"] == sync]
    runs = [run for run in every if not run["lock_taken"]]
    last = runs[0] if runs else None
    ok_at = known.ok_at.get(sync)
    is_running = last and last["status"] == "running" and last["started_at"] < now
    return {
        "sync": sync,
        "last": last,
        "judged": next((run for run in runs if run["status"] != "running"), None),
        "lock_taken": every[0] if every and every[0]["lock_taken"] else None,
        "shard": next((shard for shard in known.shards if shard["sync"] == sync), None),
        "ok_at": ok_at,
        "overdue": ok_at is None or now - ok_at > dt.timedelta(hours=flags.hours),
        "abandoned": bool(is_running and sync not in known.held),
        "rejects": {row["reason"]: row["rows"] for row in known.rejects if row["sync"] == sync},
        "trend": [{name: run[name] for name in _IN_TREND} for run in reversed(runs[: flags.runs])],
    }


def _by_status(queue: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return mails by status, and in each by template."""
    statuses: dict[str, dict[str, Any]] = {}
    for row in queue:
        one = statuses.setdefault(row["status"], {**row, "mails": 0, "templates": {}})
        one.pop("template", None)
        one["mails"] += row["mails"]
        one["oldest_at"] = min(one["oldest_at"], row["oldest_at"])
        claims = [each["claimed_at"] for each in (one, row) if each["claimed_at"]]
        one["claimed_at"] = min(claims, default=None)
        one["templates"][row["template"]] = {
            "mails": row["mails"],
            "oldest_at": row["oldest_at"],
        }
    return statuses


def _run(flags: Flags) -> int:
    from etl.cli import report
    from etl.status import html, metrics, page

    if flags.prometheus:
        metrics.check()
    if flags.html is not None:
        html.check()
    known = each_text(status(flags, dt.datetime.now(dt.UTC)), hidden)
    if flags.json:
        report.write(as_json(known))
    elif flags.prometheus:
        report.write(metrics.render(each_text(known, escaped)))
    elif flags.html is not None:
        html.write(each_text(known, escaped), flags.hours, str(flags.html))
    elif flags.check:
        report.write(page.check(each_text(known, escaped)))
    else:
        report.write(page.page(each_text(known, escaped), flags.hours))
    is_late = flags.max_age is not None and known["overdue"]
    return 1 if is_late or (flags.check and known["problems"]) else 0


def main() -> NoReturn:
    """Run what sys.argv asks for and exit."""
    arguments.main(Flags, "etl.status", _ABOUT, _run)
