"""What `python -m etl.status` prints for people, made for a terminal of 80 columns."""

from __future__ import annotations

import datetime as dt
import sys
import textwrap
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from etl.cli import report
from etl.plumbing.counted import counted
from etl.status.flags import TREND
from etl.status.problems import ago

_STYLES = {"ok": "green", "running": "cyan", "refused": "yellow", "cancelled": "yellow"}
_BAD = "bold red"

# Workers that follow docs/email-queue.md give back what they have held for longer.
LEASE = dt.timedelta(minutes=10)
_INDENT = 17  # most syncs' names and two spaces; a longer name has a line of its own


def page(known: dict[str, Any], hours: float) -> str:
    """Return what `status()` returned as text; `hours` without an ok run make a sync overdue."""
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    with report.capturing(console) as shown:
        heads = _line("sync", "status", "last run", "seconds", "rows read")
        console.print(Text(f"{heads}last {TREND} runs", "bold"))
        for sync in known["syncs"]:
            _show_sync(console, sync, known["at"])
        _show_queue(console, known)
        _show_history(console, known.get("history"))
        _show_overdue(console, known["overdue"], hours)
    return "\n".join(line.rstrip() for line in shown.get().splitlines())


def check(known: dict[str, Any]) -> str:
    """Return a line for each sync with which something is wrong, or one that all is well."""
    if not known["problems"]:
        return f"ok: {', '.join(sync['sync'] for sync in known['syncs'])}"
    return "\n".join(
        f"{one['sync']} {one['what']} (next: {one['next']})" for one in known["problems"]
    )


def _show_sync(console: Console, sync: dict[str, Any], now: dt.datetime) -> None:
    last = sync["last"]
    name = sync["sync"]
    if len(name) > _INDENT - 2:
        console.print(Text("\n".join(textwrap.wrap(name, 79))))
        name = ""
    if last is None:
        console.print(_head((name, "never run", "", "", ""), Text()))
        return
    status = "killed" if sync["abandoned"] else last["status"]
    seconds = "" if last["seconds"] is None else f"{last['seconds']:,.2f}"
    rows = "" if last["extracted"] is None else f"{last['extracted']:,}"
    trend = _trend(sync["trend"], unicode=console.encoding.startswith("utf"))
    age = ago(now - last["started_at"])
    console.print(_head((name, status, age, seconds, rows), trend))
    for text in _details(sync, now):
        console.print(Padding(Text(text), (0, 0, 0, _INDENT)))


def _details(sync: dict[str, Any], now: dt.datetime) -> list[str]:
    last = sync["last"]
    lines = []
    if sync["abandoned"]:
        lines.append("it was killed: no process holds its lock; the next run will say failed")
    elif last["status"] != "running":
        lines.append(report.outcome_or_error(last))
    if last["shards"] > 1:
        lines.append(_shards(last))
    if last["rejected"]:
        reasons = ", ".join(f"{reason} {rows:,}" for reason, rows in sync["rejects"].items())
        lines.append(f"rejected: {reasons or 'no row is kept'} (etl.rejected_rows)")
    if last["warning"]:
        lines.append(f"warning: {last['warning']}")
    if last["forced"]:
        lines.append("forced: the guards were skipped")
    if last["status"] != "ok":
        ok_at = sync["ok_at"]
        lines.append(f"last ok run {ago(now - ok_at)}" if ok_at else "never had an ok run")
    if taken := sync["lock_taken"]:
        lines.append(f"an attempt {ago(now - taken['started_at'])} found {_holder(taken)}")
    if sync["problem"]:
        lines.append(f"next: {sync['problem']['next']}")
    return lines


def _holder(attempt: dict[str, Any]) -> str:
    """Whom an attempt found at work, without the advice that its line gives."""
    return str(attempt["error"]).partition(": ")[2].partition(";")[0].replace("its", "the", 1)


def _show_queue(console: Console, known: dict[str, Any]) -> None:
    if queue := known["queue"]:
        waiting = queue.get("pending")
        oldest = f" (oldest {ago(known['at'] - waiting['oldest_at'])})" if waiting else ""
        counts = ", ".join(
            f"{row['mails']:,} {name}{oldest if name == 'pending' else ''}{_held(row, known['at'])}"
            for name, row in queue.items()
        )
        console.print(Padding(Text(f"mail queue: {counts}"), (1, 0, 0, 0)))
    for text in _mail_notes(known):
        console.print(Text(text, _STYLES["refused"]))


def _held(row: dict[str, Any], now: dt.datetime) -> str:
    return f" (oldest {ago(now - row['claimed_at'])})" if row["claimed_at"] else ""


def _mail_notes(known: dict[str, Any]) -> list[str]:
    reins, held = known["reins"], known["queue"].get("processing")
    notes = []
    if held and held["claimed_at"] and (age := known["at"] - held["claimed_at"]) > LEASE:
        notes.append(
            f"a worker claimed a mail {ago(age)} and has not reported it: is it alive, and does"
            " release_stale_emails.sql run?"
        )
    if reins["allowlist"]:
        notes.append(
            f"only {counted(reins['allowlist'], 'user is', 'users are')} mailed:"
            " crm.email_allowlist is on"
        )
    if reins["paused"]:
        notes.append(f"paused templates: {reins['paused']}")
    if reins["daily_caps"]:
        notes.append(f"mails a day at most: {reins['daily_caps']}")
    return notes


def _show_history(console: Console, runs: list[dict[str, Any]] | None) -> None:
    if not runs:
        return
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("started, UTC", "run"):
        table.add_column(name, no_wrap=True)
    table.add_column("sync", overflow="fold", max_width=_INDENT - 2)
    table.add_column("status", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("what it did", ratio=1)
    for run in runs:
        table.add_row(
            f"{run['started_at']:%m-%d %H:%M:%S}",
            run["run_id"][:8],
            run["sync"],
            Text(run["status"], _STYLES.get(run["status"], _BAD)),
            "" if run["seconds"] is None else f"{run['seconds']:,.2f}",
            report.outcome_or_error(run),
        )
    console.print()
    console.print(table)


def _show_overdue(console: Console, overdue: list[str], hours: float) -> None:
    if overdue:
        text = Text(f"Overdue, no ok run for {counted(hours, 'hour')}: {', '.join(overdue)}", _BAD)
    else:
        text = Text(f"Nothing is overdue: every sync had an ok run in {counted(hours, 'hour')}.")
    console.print(Padding(text, (1, 0, 0, 0)))


def _shards(run: dict[str, Any]) -> str:
    if run["shards_seen"] == 1:
        return f"shard ({run['first_shard']}, {run['shards']}) alone"
    return f"{run['shards_ok']} of {run['shards']} shards loaded"


def _head(cells: tuple[str, ...], trend: Text) -> Text:
    line = Text(_line(*cells))
    line.stylize(_STYLES.get(cells[1], _BAD), _INDENT, _INDENT + len(cells[1]))
    return line.append(trend)


def _line(*cells: str) -> str:
    sync, status, age, seconds, rows = cells
    return f"{sync:<{_INDENT}}{status:<11}{age:<13}{seconds:>9}{rows:>12}  "


def _trend(runs: list[dict[str, Any]], *, unicode: bool) -> Text:
    """The seconds of the ok runs as a row of bars, oldest first; an x where a run was not ok."""
    bars = "▁▂▃▄▅▆▇█" if unicode else ".:-=+*#@"
    longest = max((run["seconds"] or 0 for run in runs if run["status"] == "ok"), default=0)
    trend = Text()
    for run in runs:
        if run["status"] == "ok":
            part = (run["seconds"] or 0) / longest if longest else 0
            trend.append(bars[min(int(part * len(bars)), len(bars) - 1)])
        else:
            trend.append("x", _STYLES.get(run["status"], _BAD))
    return trend
