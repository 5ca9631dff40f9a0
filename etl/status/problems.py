"""What is wrong with a sync: one sentence, and the command to type next."""

from __future__ import annotations

import datetime as dt
from typing import Any

from etl.cli.advice import next_command
from etl.plumbing.counted import counted


def problem(sync: dict[str, Any], now: dt.datetime, hours: float) -> dict[str, str] | None:
    """Return what is wrong with a sync as `sync`, `what` and `next`; None: nothing is.

    Args:
        sync: one of what `status()` returns.
        now: when it was read.
        hours: how many without an ok run make a sync overdue.
    """
    name, judged = sync["sync"], sync["shard"] or sync["judged"]
    if sync["abandoned"]:
        began = ago(now - sync["last"]["started_at"])
        what = f"was killed: it began {began} and no process holds its lock"
        return {"sync": name, "what": what, "next": f"python -m etl.{name}"}
    if judged and judged["status"] != "ok":
        status, error = judged["status"], judged["error"]
        what = f"{status} {ago(now - judged['started_at'])}: {error or 'no reason is known'}"
        following = next_command(name, status, error)
        if shard := sync["shard"]:
            what = f"shard ({shard['shard']}, {shard['shards']}) {what}"
            if following.startswith(f"python -m etl.{name}"):
                following += f" --shard {shard['shard']}/{shard['shards']}"
        return {"sync": name, "what": what, "next": following}
    if sync["overdue"]:
        since = f"the last was {ago(now - sync['ok_at'])}" if sync["ok_at"] else "there was none"
        what = f"is overdue: no ok run for {counted(hours, 'hour')}, {since}"
        return {"sync": name, "what": what, "next": f"python -m etl.{name}"}
    return None


def ago(age: dt.timedelta) -> str:
    """An age in words, such as `3 hours ago`."""
    minutes = age.total_seconds() / 60
    if minutes < 1:
        return "just now"
    if minutes < 120:
        return f"{minutes:.0f} min ago"
    if minutes < 48 * 60:
        return f"{minutes / 60:.0f} hours ago"
    return f"{minutes / 60 / 24:,.0f} days ago"
